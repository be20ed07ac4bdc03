//! Trace Context of the W3C: requests carry the id of the trace that they belong to in `traceparent`
//! (<https://www.w3.org/TR/trace-context/>). A valid one goes on unchanged, with its `tracestate`. Where the proxy
//! is to make them, a request without a valid one gets a new one, and a `tracestate` that it has is dropped (section
//! 3.3 and 4.3 there).

use crate::forwarded::{digits, next_id, random};
use http::{HeaderMap, HeaderValue};

/// The header with the ids.
pub const TRACEPARENT: &str = "traceparent";
/// The header with what tracing systems keep beside them.
pub const TRACESTATE: &str = "tracestate";

/// Length of version 00: `00-`, 32 digits, `-`, 16 digits, `-`, 2 digits.
const LENGTH: usize = 55;

/// What is done about requests without a valid `traceparent`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tracing {
    /// They go on as they came.
    #[default]
    Pass,
    /// They get a new one, with the flag that they are sampled.
    Create,
}

/// The id of a trace, in hexadecimal.
pub type TraceId = [u8; 32];

/// The id of the trace that a value of `traceparent` names; none where that is not valid.
pub fn trace_of(value: &[u8]) -> Option<TraceId> {
    let known = value.get(..LENGTH)?;
    let version = &known[..2];
    // Versions to come may be longer, after a hyphen.
    let ends = value.len() == LENGTH || (version != b"00" && value[LENGTH] == b'-');
    let hyphens = known[2] == b'-' && known[35] == b'-' && known[52] == b'-';
    let (trace, parent) = (&known[3..35], &known[36..52]);
    let hex = [version, trace, parent, &known[53..]];
    let hex = hex.iter().copied().flatten();
    let valid = ends
        && hyphens
        && version != b"ff"
        && hex
            .copied()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        && [trace, parent]
            .iter()
            .all(|id| id.iter().any(|byte| *byte != b'0'));
    valid.then(|| trace.try_into().ok()).flatten()
}

/// A new value.
pub struct Made([u8; LENGTH]);

impl Made {
    /// Of a new trace, which is sampled: to say the opposite would switch off what applications record by
    /// themselves.
    pub fn new() -> Self {
        let bits = next_id();
        // An id of zeros only is not valid; this happens once in 2^64 requests.
        let parent = random().max(1);
        let mut text = *b"00-00000000000000000000000000000001-0000000000000001-01";
        for (place, shift) in [(3, 96), (11, 64), (19, 32), (27, 0)] {
            text[place..place + 8].copy_from_slice(&digits((bits >> shift) as u32));
        }
        text[36..44].copy_from_slice(&digits((parent >> 32) as u32));
        text[44..52].copy_from_slice(&digits(parent as u32));
        Self(text)
    }

    /// As a header's value.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The id of the trace.
    pub fn trace(&self) -> TraceId {
        let mut trace = [b'0'; 32];
        trace.copy_from_slice(&self.0[3..35]);
        trace
    }
}

/// What becomes of the trace of a request that takes the long way.
#[derive(Default)]
pub struct Traced {
    /// The trace that it belongs to, if any.
    pub trace: Option<TraceId>,
    /// What it gets in the place of what it has.
    made: Option<HeaderValue>,
}

impl Traced {
    /// Looks at the headers of a request.
    pub fn look(headers: &HeaderMap, tracing: Tracing) -> Self {
        let mut values = headers.get_all(TRACEPARENT).iter();
        let trace = match (values.next(), values.next()) {
            (Some(value), None) => trace_of(value.as_bytes()),
            _ => None,
        };
        if trace.is_some() || tracing == Tracing::Pass {
            return Self { trace, made: None };
        }
        let made = Made::new();
        Self {
            trace: Some(made.trace()),
            made: HeaderValue::from_bytes(made.as_bytes()).ok(),
        }
    }

    /// Puts it into the headers that go to the app: the same for each attempt.
    pub fn tell(&self, headers: &mut HeaderMap) {
        if let Some(made) = &self.made {
            headers.remove(TRACESTATE);
            headers.insert(TRACEPARENT, made.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALID: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn both_halves_of_a_made_trace_differ_from_one_to_the_next() {
        let traces: Vec<TraceId> = (0..1_000).map(|_| Made::new().trace()).collect();
        for half in [0..16, 16..32] {
            let mut seen: Vec<_> = traces.iter().map(|trace| &trace[half.clone()]).collect();
            seen.sort_unstable();
            seen.dedup();
            assert_eq!(seen.len(), traces.len());
            // What samplers go by: the last byte of each half takes about all values.
            let mut ends: Vec<_> = seen.iter().map(|half| &half[14..]).collect();
            ends.sort_unstable();
            ends.dedup();
            assert!(ends.len() > 230, "{}", ends.len());
        }
    }

    #[test]
    fn what_is_valid_is_told_from_what_is_not() {
        let trace = trace_of(VALID.as_bytes());
        assert_eq!(trace, Some(*b"0af7651916cd43dd8448eb211c80319c"));
        for valid in [
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00",
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-ff",
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
        ] {
            assert!(trace_of(valid.as_bytes()).is_some(), "{valid}");
        }
        for wrong in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01more",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319g-b7ad6b7169203331-01",
            "00_0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0x",
        ] {
            assert_eq!(trace_of(wrong.as_bytes()), None, "{wrong}");
        }
    }

    #[test]
    fn what_is_made_is_valid_and_new_each_time() {
        let mut traces = std::collections::HashSet::new();
        for _ in 0..1_000 {
            let made = Made::new();
            assert_eq!(trace_of(made.as_bytes()), Some(made.trace()));
            assert!(traces.insert(made.trace()));
        }
    }

    #[test]
    fn only_what_is_not_valid_is_replaced_and_its_state_goes_with_it() {
        let headers = |parents: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for parent in parents {
                headers.append(TRACEPARENT, HeaderValue::from_static(parent));
            }
            headers.insert(TRACESTATE, HeaderValue::from_static("a=1"));
            headers
        };
        for (parents, tracing, goes_on) in [
            (&[VALID][..], Tracing::Create, true),
            (&[VALID], Tracing::Pass, true),
            (&["odd"], Tracing::Pass, true),
            (&["odd"], Tracing::Create, false),
            (&[], Tracing::Create, false),
            (&[VALID, VALID], Tracing::Create, false),
        ] {
            let before = headers(parents);
            let mut after = before.clone();
            let traced = Traced::look(&before, tracing);
            traced.tell(&mut after);
            assert_eq!(before == after, goes_on, "{parents:?} {tracing:?}");
            if !goes_on {
                assert_eq!(after.get(TRACESTATE), None);
                let made = after[TRACEPARENT].as_bytes();
                assert_eq!(trace_of(made), traced.trace);
                assert!(traced.trace.is_some());
            }
        }
    }

    /// What an id costs: `cargo nextest run --release -p beanpole-proxy --run-ignored only cost --no-capture`.
    #[test]
    #[ignore = "a measurement"]
    fn the_cost_of_making_one() {
        const TIMES: u32 = 10_000_000;
        for _ in 0..3 {
            let begun = std::time::Instant::now();
            for _ in 0..TIMES {
                std::hint::black_box(Made::new());
            }
            let making = begun.elapsed() / TIMES;
            let begun = std::time::Instant::now();
            for _ in 0..TIMES {
                std::hint::black_box(trace_of(std::hint::black_box(VALID.as_bytes())));
            }
            println!("made: {making:?}, looked at: {:?}", begun.elapsed() / TIMES);
        }
    }
}
