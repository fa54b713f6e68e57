//! Ours: LIMIT, how many bytes and operations a second a disk may have.
use super::bodies::{BadBody, Body, put, take};
use super::{Frame, MESSAGE_BYTES};

/// Stays what it is.
const KEEP: u64 = u64::MAX;
/// Where the first number is; they follow each other.
const START: usize = 280;

/// Limits of a disk, as they are asked for or in force. Pairs are of reads and of writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// Bytes a second; 0: no limit; `None` in a request: as it is.
    pub bytes: [Option<u64>; 2],
    /// Operations a second, likewise.
    pub ops: [Option<u64>; 2],
    /// What may come at once after a time with less, in ms of the limit.
    pub burst_ms: Option<u64>,
    /// In a reply: requests that waited since the disk was opened.
    pub waited: [u64; 2],
    /// In a reply: how long they did, in µs.
    pub waited_us: [u64; 2],
}

impl Body for Rates {
    fn write_to(&self, frame: &mut Frame) {
        let [br, bw] = self.bytes.map(|rate| rate.unwrap_or(KEEP));
        let [or, ow] = self.ops.map(|rate| rate.unwrap_or(KEEP));
        let burst = self.burst_ms.unwrap_or(KEEP);
        let [wr, ww] = self.waited;
        let [ur, uw] = self.waited_us;
        for (i, number) in [br, bw, or, ow, burst, wr, ww, ur, uw].into_iter().enumerate() {
            put(frame, START + 8 * i, number.to_ne_bytes());
        }
    }

    fn read_from(frame: &Frame) -> Result<Rates, BadBody> {
        const { assert!(START + 8 * 9 <= MESSAGE_BYTES, "they have room") };
        let number = |i: usize| u64::from_ne_bytes(take(frame, START + 8 * i));
        let rate = |i: usize| Some(number(i)).filter(|rate| *rate != KEEP);
        Ok(Rates {
            bytes: [rate(0), rate(1)],
            ops: [rate(2), rate(3)],
            burst_ms: rate(4),
            waited: [number(5), number(6)],
            waited_us: [number(7), number(8)],
        })
    }
}

/// A limit as people write it: a number, with k, M, G for thousands or Ki, Mi, Gi for 1024s.
pub fn amount(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match &text[digits.len()..] {
        "" => 1,
        "k" | "K" => 1000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        _ => return None,
    };
    let number = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(factor));
    number.filter(|number| *number != KEEP)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_have_units() {
        for (text, number) in
            [("0", 0), ("17", 17), ("2k", 2000), ("50M", 50_000_000), ("1Gi", 1 << 30)]
        {
            assert_eq!(amount(text), Some(number), "{text}");
        }
        for text in ["", "k", "-1", "1.5M", "1T", "99999999999999999999", "18446744073709551615"] {
            assert_eq!(amount(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let rates = Rates {
            bytes: [Some(0), None],
            ops: [None, Some(1 << 40)],
            burst_ms: Some(100),
            waited: [7, 8],
            waited_us: [9, 10],
        };
        let mut frame = [0; MESSAGE_BYTES];
        rates.write_to(&mut frame);
        assert_eq!(Rates::read_from(&frame), Ok(rates));
        assert!(frame[20..276].iter().all(|byte| *byte == 0), "the path's place is free");
    }
}
