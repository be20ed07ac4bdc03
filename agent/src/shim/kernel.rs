//! What the kernel's log says of processes that it killed for memory.

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// Records read at most; the kernel's buffer holds some thousands.
const MOST_RECORDS: usize = 50_000;
/// The longest record that the kernel gives out.
const RECORD: usize = 8 * 1024;

/// The name of the process that the kernel killed last for memory in a control group called `group`,
/// leaving out process `besides`. None where the log cannot be read, as in most containers.
pub(super) fn last_killed(group: &str, besides: Option<i32>) -> Option<String> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let log = rustix::fs::open("/dev/kmsg", flags, Mode::empty()).ok()?;
    let mut last = None;
    let mut record = [0_u8; RECORD];
    for _ in 0..MOST_RECORDS {
        match rustix::io::read(&log, &mut record) {
            Ok(0) => break,
            Ok(length) => {
                let text = String::from_utf8_lossy(&record[..length]);
                if let Some((name, pid)) = killed_in(group, &text)
                    && Some(pid) != besides
                {
                    last = Some(name.to_owned());
                }
            }
            // The next record was overwritten meanwhile, or a signal came: it goes on after that.
            Err(Errno::PIPE | Errno::INTR) => {}
            Err(_) => break,
        }
    }
    last
}

/// The process that a record of the log tells the end of, if it was in that group. Its name is last
/// but for numbers, as it may hold any character.
fn killed_in<'r>(group: &str, record: &'r str) -> Option<(&'r str, i32)> {
    let (_, text) = record.split_once(";oom-kill:")?;
    let (_, rest) = text.split_once(",task_memcg=")?;
    let (path, rest) = rest.split_once(",task=")?;
    if !path.split('/').any(|part| part == group) {
        return None;
    }
    let (name, rest) = rest.rsplit_once(",pid=")?;
    let pid = rest.split(',').next()?.parse().ok()?;
    Some((name, pid))
}

#[cfg(test)]
mod tests {
    use super::killed_in;

    #[test]
    fn the_process_and_its_group_are_found_in_a_record() {
        let record = "6,1901,23341650958,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),\
            cpuset=/,mems_allowed=0,oom_memcg=/beanpole/i-47,task_memcg=/beanpole/i-47,\
            task=a, b,pid=11215,uid=995\n";
        assert_eq!(killed_in("i-47", record), Some(("a, b", 11215)));
        assert_eq!(killed_in("i-4", record), None, "another instance");
        let other = "6,1902,23341650999,-;tail invoked oom-killer: gfp_mask=0xcc0\n";
        assert_eq!(killed_in("i-47", other), None);
    }
}
