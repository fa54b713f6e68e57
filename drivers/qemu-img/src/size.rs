//! Sizes as people write and read them.

const UNITS: &[u8] = b"bkmgtpe";

/// A number of bytes: decimal digits, perhaps a fraction, perhaps a unit (`b`, `k`, `M` ... of
/// 1024).
///
/// ```text
/// 1.5M ─► 1572864
/// ```
pub(crate) fn parse(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let power = match unit.as_bytes() {
        [] => 0,
        [unit] => UNITS.iter().position(|known| *known == unit.to_ascii_lowercase())?,
        _ => return None,
    };
    let scale = 1u128 << (10 * power);
    let (whole, part) = match number.split_once('.') {
        None => (number, ""),
        Some(_) if power == 0 => return None,
        Some(both) => both,
    };
    if whole.is_empty() || part.contains('.') || part.len() > 18 {
        return None;
    }
    let mut bytes = whole.parse::<u128>().ok()?.checked_mul(scale)?;
    if !part.is_empty() {
        let tens = 10u128.pow(u32::try_from(part.len()).ok()?);
        // To the nearest byte.
        bytes += (part.parse::<u128>().ok()? * scale + tens / 2) / tens;
    }
    u64::try_from(bytes).ok()
}

/// Three digits and a unit, as QEMU writes them: `1.09 MiB`.
pub(crate) fn human(bytes: u64) -> String {
    const NAMES: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let too_many = |power: &usize| u128::from(bytes) >= 1000u128 << (10 * power);
    let power = (0..6).find(|power| !too_many(power)).unwrap_or(6);
    let scale = 1u128 << (10 * power);
    // Digits behind the point: as many as make three.
    let whole = u128::from(bytes) / scale;
    let digits: usize = match whole {
        100.. => 0,
        10.. => 1,
        1.. => 2,
        0 => 3,
    };
    let tens = [1, 10, 100, 1000][digits];
    let scaled = u128::from(bytes) * tens;
    let mut rounded = scaled / scale;
    // Halves go to the even one.
    let rest = scaled % scale * 2;
    if rest > scale || (rest == scale && rounded % 2 == 1) {
        rounded += 1;
    }
    let name = NAMES[power];
    if rounded >= 1000 && digits == 0 {
        return format!("1e+03 {name}");
    }
    let text = match digits {
        0 => rounded.to_string(),
        _ => format!("{}.{:0width$}", rounded / tens, rounded % tens, width = digits),
    };
    let text = match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    };
    format!("{text} {name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        for (text, bytes) in [
            ("0", Some(0)),
            ("1000", Some(1000)),
            ("1k", Some(1024)),
            ("1.5M", Some(1_572_864)),
            ("16E", None),
            ("15E", Some(15 << 60)),
            ("2T", Some(2 << 40)),
            ("7b", Some(7)),
            ("", None),
            ("k", None),
            ("1.5", None),
            ("1Q", None),
            ("-1", None),
            ("1 k", None),
            ("1kk", None),
        ] {
            assert_eq!(parse(text), bytes, "{text}");
        }
    }

    #[test]
    fn sizes_have_three_digits() {
        for (bytes, text) in [
            (0, "0 B"),
            (512, "512 B"),
            (999, "999 B"),
            (1000, "0.977 KiB"),
            (1024, "1 KiB"),
            (197_120, "192 KiB"),
            (1_000_448, "977 KiB"),
            (1_126_400, "1.07 MiB"),
            (1_147_392, "1.09 MiB"),
            (1 << 30, "1 GiB"),
            (17_589_500_641_280, "16 TiB"),
            (1_572_864, "1.5 MiB"),
        ] {
            assert_eq!(human(bytes), text, "{bytes}");
        }
    }
}
