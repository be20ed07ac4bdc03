//! The scripts that hosts run during the set-up. Each is fixed text; parameters become shell
//! variables, quoted by [`quoted`]. They keep to what a bare POSIX shell, coreutils or busybox
//! offer.

use super::Paths;
use super::quote::quoted;
use crate::ssh::{ExecError, Output, Session};
use bytes::Bytes;
use std::path::Path;
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
# A cron that runs now runs after a reboot, too. busybox's reads no cron.d.
cron=no
if [ -d "$CRON" ]; then
  for comm in /proc/[0-9]*/comm; do
    { read -r name <"$comm"; } 2>/dev/null || continue
    case $name in cron|crond) cron=yes ;; esac
  done
  program=$(PATH="$PATH:/usr/sbin:/sbin"; command -v cron || command -v crond) || program=
  case $(readlink -f "$program" 2>/dev/null) in *busybox*) cron=no ;; esac
fi
echo "cron=$cron"
# A user of that name who was there before keeps keys and home.
if id "$BEANPOLE_USER" >/dev/null 2>&1; then
  home=$(awk -F: -v user="$BEANPOLE_USER" '$1 == user { print $6 }' /etc/passwd)
  [ "$home" = "$HOME_DIR" ] || echo "taken=${home:-unknown}"
fi
if [ "$(id -u)" != 0 ]; then
  if ! command -v sudo >/dev/null 2>&1; then echo "sudo=sudo is not installed"
  elif said=$(LC_ALL=C sudo -n true 2>&1 </dev/null); then echo sudo=yes
  else echo "sudo=$(echo "$said" | head -n 1)"; fi
fi
"#;

/// Says which host this is and whose, from what an agent left. The agent writes its files with an
/// indentation of two, and no text in them has a line end. Needs root.
pub(super) const STANDING: &str = r#"
agent="$DATA/agent"
flat() { tr -d '\n' <"$1"; echo; }
[ ! -f "$agent/identity.json" ] || { printf agent=; flat "$agent/identity.json"; }
[ ! -f "$agent/owner.json" ] || { printf owner=; flat "$agent/owner.json"; }
[ ! -f "$HOME_DIR/.ssh/authorized_keys" ] || { printf key=; flat "$HOME_DIR/.ssh/authorized_keys"; }
if [ -f "$agent/orders.json" ]; then
  sed -n 's/^      "environment_name": "\([^"]*\)".*/environment=\1/p' "$agent/orders.json" | sort -u
  echo "instances=$(grep -c '^      "incarnation": ' "$agent/orders.json")"
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

home=$HOME_DIR
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
  if [ ! -f "$START" ] || [ "$(cat "$START")" != "$START_AGENT" ]; then
    printf '%s\n' "$START_AGENT" >"$START.new"
    chmod 0755 "$START.new"
    mv -f "$START.new" "$START"
  fi
  if [ "$WITH_CRON" = no ]; then rm -f "$CRON_FILE"
  elif [ ! -f "$CRON_FILE" ] || [ "$(cat "$CRON_FILE")" != "$CRON_LINES" ]; then
    # cron leaves names with a dot alone: no half-written file is ever read.
    printf '%s\n' "$CRON_LINES" >"$CRON_FILE.new"
    chmod 0644 "$CRON_FILE.new"
    mv -f "$CRON_FILE.new" "$CRON_FILE"
  fi
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
    "$START"
  fi
fi
"#;

/// What sshd says about itself, for our user.
pub(super) const ASK_SSHD: &str = r#"
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"
echo "version $(ssh -V 2>&1 | head -n 1)"
sshd -T -C "user=$BEANPOLE_USER,host=localhost,addr=127.0.0.1" 2>/dev/null
"#;

/// Lets the controller's key through this user's account to one more machine. A line of ours from
/// before becomes this one and keeps the machines that it had; other lines stay as they are.
pub(super) const AUTHORISE: &str = r#"
set -eu
umask 077
mkdir -p "$HOME/.ssh"
file="$HOME/.ssh/authorized_keys"
touch "$file"
# A link to it stays one.
file=$(readlink -f "$file")
export START HOP REST KEY
awk '
  BEGIN { split(ENVIRON["KEY"], key, " "); hops = ENVIRON["HOP"] "," }
  index($0, ENVIRON["START"]) == 1 && index($0, key[2]) {
    count = split($0, options, ",")
    for (i = 1; i <= count; i++)
      if (options[i] ~ /^permitopen="[^"]*"$/ && !index("," hops, "," options[i] ","))
        hops = hops options[i] ","
    next
  }
  { print }
  END { print ENVIRON["START"] "," hops ENVIRON["REST"] " " ENVIRON["KEY"] }
' "$file" >"$file.new"
# Ours is the last: when it is there, so is all before it.
tail -n 1 "$file.new" | grep -qF "$REST $KEY" || { echo "no room for $file.new" >&2; exit 1; }
mv -f "$file.new" "$file"
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
# However often it fails (a full disk, say), it is tried again.
StartLimitIntervalSec=0

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

/// What starts the agent where systemd does not, unless it runs: a file on the host.
pub(super) fn start_agent(paths: &Paths) -> String {
    let word = |path: &Path| quoted(&path.display().to_string());
    format!(
        r#"#!/bin/sh
# Starts Beanpole's agent where systemd does not, unless it runs.
lib={lib}
data={data}
run={run}
socket={socket}
group={group}
runs() {{
  case $(tr '\0' ' ' <"/proc/$1/cmdline") in *"$2"*) return 0 ;; esac
  return 1
}} 2>/dev/null
[ -x "$lib/current/beanpole" ] || exit 0
pid=$(cat "$run/supervisor.pid" 2>/dev/null)
runs "${{pid:-none}}" "agent --supervise" && exit 0
# An agent whose parent was killed makes room for one with a parent. Its apps go on.
pid=$(cat "$data/agent/agent.lock" 2>/dev/null)
runs "${{pid:-none}}" "beanpole agent --data" && kill "$pid"
cd / || exit 1
umask 077
: >>"$data/agent.log"
umask 022
ulimit -n "$(ulimit -H -n)" 2>/dev/null
setsid env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin   "$lib/current/beanpole" agent --supervise --data "$data" --socket "$socket"   --socket-group "$group" </dev/null >>"$data/agent.log" 2>&1 &"#,
        lib = word(&paths.lib),
        data = word(&paths.data),
        run = word(&paths.run),
        socket = word(&paths.socket()),
        group = quoted(&paths.user),
    )
}

/// What cron is told: at boot, and every few minutes in case that the parent itself was killed.
/// The latter also serves machines that keep `/run` over a reboot, where cron skips `@reboot`.
pub(super) fn cron(paths: &Paths) -> String {
    // To cron, `%` is the end of the line.
    let start = quoted(&paths.start_agent().display().to_string()).replace('%', r"\%");
    format!(
        "# Made by Beanpole: starts its agent, unless it runs.
@reboot root {start}
*/5 * * * * root {start}"
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
    fn a_bastion_gets_one_line_with_every_machine_behind_it_and_no_other_is_spoilt() {
        let home = tempfile::tempdir().expect("temporary directory");
        let keys = home.path().join(".ssh/authorized_keys");
        std::fs::create_dir(home.path().join(".ssh")).expect("make");
        // The admin's last line has no end; an earlier version of ours let the key anywhere.
        let before = "restrict,port-forwarding ssh-ed25519 OURS beanpole-controller\n\
            restrict,port-forwarding,permitopen=\"c:1\" ssh-ed25519 ANOTHER beanpole-controller\n\
            ssh-ed25519 admin's";
        std::fs::write(&keys, before).expect("write");
        for hop in [
            "permitopen=\"[a]:22\"",
            "permitopen=\"[b]:2\"",
            "permitopen=\"[a]:22\"",
        ] {
            let values = [
                ("START", "restrict,port-forwarding"),
                ("HOP", hop),
                ("REST", "permitlisten=\"localhost:1\""),
                ("KEY", "ssh-ed25519 OURS beanpole-controller"),
            ];
            let status = Command::new("sh")
                .args(["-c", &command(false, AUTHORISE, &values)])
                .env("HOME", home.path())
                .status()
                .expect("sh runs");
            assert!(status.success());
        }
        let text = std::fs::read_to_string(&keys).expect("read");
        assert_eq!(
            text,
            "restrict,port-forwarding,permitopen=\"c:1\" ssh-ed25519 ANOTHER beanpole-controller\n\
             ssh-ed25519 admin's\n\
             restrict,port-forwarding,permitopen=\"[a]:22\",permitopen=\"[b]:2\",permitlisten=\"localhost:1\" \
             ssh-ed25519 OURS beanpole-controller\n"
        );
        assert_eq!(
            std::fs::read_dir(home.path().join(".ssh"))
                .expect("list")
                .count(),
            1
        );
    }

    #[test]
    fn every_script_is_a_posix_script() {
        let start = start_agent(&Paths::default());
        for script in [
            DETECT, STANDING, DIGEST, UPLOAD, PLACE, INSTALL, ASK_SSHD, AUTHORISE, &start,
        ] {
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
