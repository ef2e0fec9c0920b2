//! Numbers as people read them.

use crate::statistics::Share;

/// What stands for a thing that a tool cannot do.
pub const DASH: &str = "–";

/// Returns a share in percent; 0 only if it is none at all.
pub fn share(share: Share) -> String {
    let percent = share.ratio() * 100.0;
    match share.count {
        0 => "0".to_owned(),
        _ if share.count == share.of => "100 %".to_owned(),
        _ if percent < 0.1 => "< 0.1 %".to_owned(),
        _ if percent < 10.0 => format!("{percent:.1} %"),
        _ if percent > 99.4 => "> 99 %".to_owned(),
        _ => format!("{percent:.0} %"),
    }
}

/// Returns a time with its unit, in two or three digits.
pub fn time(micros: f64) -> String {
    let (value, unit) = match micros {
        _ if micros < 999.5 => (micros, "µs"),
        _ if micros < 999_500.0 => (micros / 1e3, "ms"),
        _ => (micros / 1e6, "s"),
    };
    let digits = if value < 99.95 { 1 } else { 0 };
    format!("{value:.digits$} {unit}")
}

/// Returns a number with a comma at each thousand, in three digits that count; below 10, in two.
pub fn count(number: f64) -> String {
    if number < 9.95 && number != 0.0 {
        return format!("{number:.1}");
    }
    let magnitude = number.abs().log10().floor().max(2.0) as i32 - 2;
    let unit = 10_f64.powi(magnitude);
    let digits = format!("{:.0}", (number / unit).round() * unit);
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Returns a number of bytes in megabytes.
pub fn bytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

/// Returns a delay as it is written in a heading.
pub fn delay(millis: u64) -> String {
    match millis {
        0 => "0".to_owned(),
        _ if millis.is_multiple_of(1000) => format!("{} s", millis / 1000),
        _ => format!("{millis} ms"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_none_is_zero_and_only_all_is_everything() {
        let text = |count, of| share(Share { count, of });
        assert_eq!(text(0, 100), "0");
        assert_eq!(text(1, 10_000), "< 0.1 %");
        assert_eq!(text(1, 1000), "0.1 %");
        assert_eq!(text(347, 1000), "35 %");
        assert_eq!(text(9_999, 10_000), "> 99 %");
        assert_eq!(text(994, 1000), "99 %");
        assert_eq!(text(5, 5), "100 %");
        assert_eq!(text(0, 0), "0");
    }

    #[test]
    fn times_have_the_unit_that_fits() {
        assert_eq!(time(8.04), "8.0 µs");
        assert_eq!(time(99.96), "100 µs");
        assert_eq!(time(276_000.0), "276 ms");
        assert_eq!(time(2_056.8), "2.1 ms");
        assert_eq!(time(999.6), "1.0 ms");
        assert_eq!(time(1_200_000.0), "1.2 s");
    }

    #[test]
    fn counts_have_three_digits_that_count() {
        assert_eq!(count(28_860.3), "28,900");
        assert_eq!(count(84.49), "84");
        assert_eq!(count(999.6), "1,000");
        assert_eq!(count(1_234_567.0), "1,230,000");
        assert_eq!(count(3.62), "3.6");
        assert_eq!(count(9.96), "10");
        assert_eq!(count(0.0), "0");
    }
}
