//! The scripts that hosts run during the set-up. Each is fixed text; parameters become shell
//! variables, quoted by [`quoted`]. They keep to what a bare POSIX shell, coreutils or busybox
//! offer.

use super::Paths;
use super::quote::quoted;
use crate::ssh::{ExecError, Output, Session};
use bytes::Bytes;
use std::time::Duration;

/// How long a short script may take.
pub(super) const LIMIT: Duration = Duration::from_mins(1);
/// The exit status by which [`PLACE`] says that the executable does not run.
pub(super) const DOES_NOT_RUN: u32 = 42;

/// Says what the machine is and whether the user can become root.
pub(super) const DETECT: &str = r#"
echo "uid=$(id -u)"
echo "kernel=$(uname -s)"
echo "arch=$(uname -m)"
name=""
[ -r /etc/os-release ] && name=$(. /etc/os-release && echo "$PRETTY_NAME")
echo "os=${name:-$(uname -sr)}"
if [ -d "$SYSTEMD" ]; then echo systemd=yes; else echo systemd=no; fi
if [ "$(id -u)" != 0 ]; then
  if ! command -v sudo >/dev/null 2>&1; then echo "sudo=sudo is not installed"
  elif said=$(LC_ALL=C sudo -n true 2>&1 </dev/null); then echo sudo=yes
  else echo "sudo=$(echo "$said" | head -n 1)"; fi
fi
"#;

/// Prints the SHA-256 of `$FILE`, or nothing if there is none.
pub(super) const DIGEST: &str = r#"
[ -f "$FILE" ] || exit 0
sha256sum <"$FILE" | cut -d ' ' -f 1
"#;

/// Writes standard input to `$FILE`.
pub(super) const UPLOAD: &str =
    r#"umask 022; mkdir -p "$DIRECTORY" && rm -f "$FILE" && cat >"$FILE""#;

/// Moves the uploaded executable to its place, after a proof that it runs here.
pub(super) const PLACE: &str = r#"
set -eu
umask 022
mkdir -p "$DIRECTORY"
if [ -f "$FILE" ]; then
  chmod 0755 "$FILE"
  "$FILE" --version >/dev/null </dev/null || exit 42
  mv -f "$FILE" "$DIRECTORY/beanpole"
  sync
fi
"#;

/// User, key, directories, service.
pub(super) const INSTALL: &str = r#"
set -eu
umask 022

if ! id "$BEANPOLE_USER" >/dev/null 2>&1; then
  shell=/usr/sbin/nologin
  [ -x "$shell" ] || shell=/sbin/nologin
  [ -x "$shell" ] || shell=/bin/false
  if command -v useradd >/dev/null 2>&1; then
    useradd --system --user-group --home-dir "$HOME_DIR" --no-create-home --shell "$shell" "$BEANPOLE_USER"
  else
    addgroup -S "$BEANPOLE_USER" 2>/dev/null || true
    adduser -S -D -H -h "$HOME_DIR" -s "$shell" -G "$BEANPOLE_USER" "$BEANPOLE_USER"
  fi
fi
# A user without a password counts as locked for an sshd without PAM; `*` lets keys in, and no
# password ever.
if command -v usermod >/dev/null 2>&1; then usermod -p '*' "$BEANPOLE_USER"
else echo "$BEANPOLE_USER:*" | chpasswd -e >/dev/null 2>&1 || true; fi

home=$(awk -F: -v user="$BEANPOLE_USER" '$1 == user { print $6 }' /etc/passwd)
[ -n "$home" ] || home=$HOME_DIR
# Owned by root: the user cannot change who gets in.
mkdir -p "$home/.ssh"
chmod 0755 "$home" "$home/.ssh"
printf '%s\n' "$AUTHORIZED" >"$home/.ssh/authorized_keys.new"
chmod 0644 "$home/.ssh/authorized_keys.new"
mv -f "$home/.ssh/authorized_keys.new" "$home/.ssh/authorized_keys"

mkdir -p "$DATA" "$RUN"
printf '%s\n' "$INSTALLED" >"$DATA/installed.json.new"
mv -f "$DATA/installed.json.new" "$DATA/installed.json"
chmod 0711 "$DATA"
chmod 0755 "$RUN"

before=$(readlink "$LIB/current" 2>/dev/null || true)
ln -sfn "$VERSION_DIR" "$LIB/current.new"
mv -fT "$LIB/current.new" "$LIB/current" 2>/dev/null || { rm -f "$LIB/current"; mv -f "$LIB/current.new" "$LIB/current"; }
changed=no
[ "$before" = "$VERSION_DIR" ] || changed=yes

if [ "$WITH_SYSTEMD" = yes ]; then
  unit="$UNITS/beanpole-agent.service"
  if [ ! -f "$unit" ] || [ "$(cat "$unit")" != "$UNIT" ]; then
    printf '%s\n' "$UNIT" >"$unit.new"
    mv -f "$unit.new" "$unit"
    changed=yes
  fi
  systemctl daemon-reload
  systemctl enable beanpole-agent.service >/dev/null 2>&1
  systemctl reset-failed beanpole-agent.service 2>/dev/null || true
  if [ "$changed" = yes ]; then systemctl restart beanpole-agent.service
  else systemctl start beanpole-agent.service; fi
else
  alive=no
  if [ -f "$RUN/supervisor.pid" ]; then
    pid=$(cat "$RUN/supervisor.pid")
    case $(tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null) in
      *"agent --supervise"*) alive=yes ;;
    esac
  fi
  if [ "$alive" = yes ]; then
    # SIGHUP: begin anew with the executable that `current` names now.
    [ "$changed" = no ] || kill -HUP "$pid"
  else
    log="$DATA/agent.log"
    setsid "$LIB/current/beanpole" agent --supervise --data "$DATA" --socket "$SOCKET" \
      --socket-group "$BEANPOLE_USER" </dev/null >>"$log" 2>&1 &
  fi
fi
"#;

/// Lets a key into this user's account, once.
pub(super) const AUTHORISE: &str = r#"
set -eu
umask 077
mkdir -p "$HOME/.ssh"
file="$HOME/.ssh/authorized_keys"
touch "$file"
grep -qxF "$AUTHORIZED" "$file" || printf '%s\n' "$AUTHORIZED" >>"$file"
"#;

/// The agent's systemd unit.
pub(super) fn unit(paths: &Paths) -> String {
    let Paths {
        lib, data, user, ..
    } = paths;
    let socket = paths.socket();
    let (lib, data, socket) = (lib.display(), data.display(), socket.display());
    let run = paths.run.file_name().map_or_else(
        || "beanpole".to_owned(),
        |name| name.to_string_lossy().into_owned(),
    );
    format!(
        "\
[Unit]
Description=Beanpole agent
After=network.target

[Service]
ExecStart={lib}/current/beanpole agent --data {data} --socket {socket} --socket-group {user}
Restart=always
RestartSec=1
# Apps run under shims of their own and outlive the agent.
KillMode=process
RuntimeDirectory={run}
RuntimeDirectoryPreserve=yes
RuntimeDirectoryMode=0755
Delegate=yes
TasksMax=infinity
LimitNOFILE=1048576

[Install]
WantedBy=multi-user.target"
    )
}

/// The command for a script that needs standard input for itself: fixed text, `values` as
/// variables before it, all one quoted word.
pub(super) fn command(sudo: bool, script: &str, values: &[(&str, &str)]) -> String {
    let whole = format!("{}{script}", variables(values));
    let become_root = if sudo { "sudo -n -- " } else { "" };
    format!("{become_root}sh -c {}", quoted(&whole))
}

fn variables(values: &[(&str, &str)]) -> String {
    let mut text = String::new();
    for (name, value) in values {
        text.push_str(&format!("{name}={}\n", quoted(value)));
    }
    text
}

/// Runs a script, sent over standard input so that its text is in no process list.
pub(super) async fn run(
    session: &Session,
    sudo: bool,
    script: &str,
    values: &[(&str, &str)],
    limit: Duration,
) -> Result<Output, ExecError> {
    let command = if sudo { "sudo -n -- sh -s" } else { "sh -s" };
    // In braces, so that the shell has read all of it before it runs the first line.
    let text = format!("{{\n{}{script}\nexit 0\n}}\n", variables(values));
    let input = futures::stream::iter([Ok(Bytes::from(text))]);
    session.exec(command, input, limit).await
}

/// The last line that a command wrote, for an error.
pub(super) fn last_words(output: &Output) -> String {
    let text = if output.stderr.trim().is_empty() {
        &output.stdout
    } else {
        &output.stderr
    };
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty())
        .collect();
    match (lines.is_empty(), output.status) {
        (false, _) => lines[lines.len().saturating_sub(3)..].join("; "),
        (true, Some(status)) => format!("it ended with status {status}"),
        (true, None) => "it was ended by a signal".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    #[test]
    fn a_hostile_value_stays_a_value() {
        let value = "a'; echo owned; '$(echo owned)";
        let command = command(false, r#"printf %s "$VALUE""#, &[("VALUE", value)]);
        let output = Command::new("sh")
            .args(["-c", &command])
            .output()
            .expect("sh runs");
        assert_eq!(String::from_utf8_lossy(&output.stdout), value);
    }

    #[test]
    fn every_script_is_a_posix_script() {
        for script in [DETECT, DIGEST, UPLOAD, PLACE, INSTALL, AUTHORISE] {
            let mut child = Command::new("sh")
                .args(["-n"])
                .stdin(Stdio::piped())
                .spawn()
                .expect("sh runs");
            let text = format!("{{\n{script}\nexit 0\n}}\n");
            child
                .stdin
                .take()
                .expect("piped")
                .write_all(text.as_bytes())
                .expect("write");
            assert!(child.wait().expect("wait").success(), "{script}");
        }
    }
}
