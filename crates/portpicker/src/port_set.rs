//! A set of port numbers: parsed, printed, iterated, combined.

use std::fmt;
use std::iter;
use std::num::IntErrorKind;
use std::ops::RangeInclusive;
use std::str::FromStr;

/// A set of port numbers, never empty, none of them 0.
///
/// Written as numbers and inclusive ranges, separated by commas: `8080`, `20000-20999`,
/// `15000-24999,30000`. Parsing accepts blanks around the parts, any order, and overlaps;
/// printing gives the shortest such text in ascending order.
///
/// # Example
///
/// ```
/// use portpicker::PortSet;
///
/// let ports: PortSet = "20005-20009, 20000-20006, 30000".parse()?;
/// assert_eq!(ports.to_string(), "20000-20009,30000");
/// assert_eq!(ports.len(), 11);
/// assert!(ports.contains(20_009));
/// # Ok::<(), portpicker::ParsePortSetError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct PortSet {
    /// Ascending, not adjacent, not empty.
    runs: Vec<Run>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Run {
    first: u16,
    last: u16,
    /// How many ports of the set lie before this run; makes [`PortSet::nth`] a binary search.
    before: u16,
}

impl PortSet {
    /// Returns the set of all ports, `1-65535`.
    pub fn all() -> Self {
        Self::from_ranges([1..=u16::MAX]).expect("the range is not empty")
    }

    /// Returns the set of the ports in any of `ranges`, or `None` if there are none.
    ///
    /// Empty ranges and port 0 are left out.
    pub fn from_ranges(ranges: impl IntoIterator<Item = RangeInclusive<u16>>) -> Option<Self> {
        let mut pairs: Vec<(u16, u16)> = ranges
            .into_iter()
            .map(|range| ((*range.start()).max(1), *range.end()))
            .filter(|(first, last)| first <= last)
            .collect();
        pairs.sort_unstable();
        let mut merged: Vec<(u16, u16)> = Vec::with_capacity(pairs.len());
        for (first, last) in pairs {
            match merged.last_mut() {
                Some(run) if u32::from(first) <= u32::from(run.1) + 1 => run.1 = run.1.max(last),
                _ => merged.push((first, last)),
            }
        }
        let mut before = 0;
        let runs: Vec<Run> = merged
            .into_iter()
            .map(|(first, last)| {
                let run = Run {
                    first,
                    last,
                    before,
                };
                before += last - first + 1;
                run
            })
            .collect();
        (!runs.is_empty()).then_some(Self { runs })
    }

    /// Returns the set of `ports`, or `None` if there are none. Port 0 is left out.
    pub fn from_ports(ports: impl IntoIterator<Item = u16>) -> Option<Self> {
        Self::from_ranges(ports.into_iter().map(|port| port..=port))
    }

    /// Returns how many ports are in the set: 1 to 65,535.
    #[expect(clippy::len_without_is_empty, reason = "a set of ports is never empty")]
    pub fn len(&self) -> usize {
        let run = self.runs.last().expect("a set of ports is never empty");
        usize::from(run.before) + usize::from(run.last - run.first) + 1
    }

    /// Tells whether `port` is in the set.
    pub fn contains(&self, port: u16) -> bool {
        self.run_at_or_before(port)
            .is_some_and(|run| port <= run.last)
    }

    /// Tells whether the `count` ports from `first` up are all in the set.
    pub(crate) fn contains_block(&self, first: u16, count: usize) -> bool {
        self.run_at_or_before(first)
            .is_some_and(|run| usize::from(first) + count <= usize::from(run.last) + 1)
    }

    /// Returns the port at `index` in ascending order, from 0.
    pub fn nth(&self, index: usize) -> Option<u16> {
        let at = self
            .runs
            .partition_point(|run| usize::from(run.before) <= index);
        let run = self.runs.get(at.checked_sub(1)?)?;
        let within = index - usize::from(run.before);
        (within <= usize::from(run.last - run.first)).then(|| run.first + within as u16)
    }

    /// Returns the ports in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        self.ranges().flatten()
    }

    /// Returns the fewest ranges that make up the set, in ascending order.
    pub fn ranges(&self) -> impl Iterator<Item = RangeInclusive<u16>> + '_ {
        self.runs.iter().map(|run| run.first..=run.last)
    }

    /// Returns the ports that are in either set.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        Self::from_ranges(self.ranges().chain(other.ranges())).expect("neither set is empty")
    }

    /// Returns the ports that are in both sets, or `None` if there are none.
    pub fn intersection(&self, other: &Self) -> Option<Self> {
        // Side by side: each pair of runs would take a second for what a client can send in a line.
        let mut ours = self.runs.iter().peekable();
        let mut theirs = other.runs.iter().peekable();
        Self::from_ranges(iter::from_fn(|| {
            let (a, b) = (ours.peek()?, theirs.peek()?);
            let both = a.first.max(b.first)..=a.last.min(b.last);
            // The one that ends first meets none of the other's later runs.
            match a.last < b.last {
                true => ours.next(),
                false => theirs.next(),
            };
            Some(both)
        }))
    }

    /// Returns the ports of this set that are not in `other`, or `None` if there are none.
    pub fn difference(&self, other: &Self) -> Option<Self> {
        match other.complement() {
            Some(rest) => self.intersection(&rest),
            None => None,
        }
    }

    fn complement(&self) -> Option<Self> {
        let after = self.runs.iter().map(|run| run.last.checked_add(1));
        let gap_starts = iter::once(Some(1)).chain(after);
        let gap_ends = self.runs.iter().map(|run| run.first - 1).chain([u16::MAX]);
        let gaps = gap_starts
            .zip(gap_ends)
            .filter_map(|(first, last)| Some(first?..=last));
        Self::from_ranges(gaps)
    }

    fn run_at_or_before(&self, port: u16) -> Option<&Run> {
        let at = self.runs.partition_point(|run| run.first <= port);
        self.runs.get(at.checked_sub(1)?)
    }
}

impl fmt::Display for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, run) in self.runs.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            match run {
                Run { first, last, .. } if first == last => write!(f, "{first}")?,
                Run { first, last, .. } => write!(f, "{first}-{last}")?,
            }
        }
        Ok(())
    }
}

impl fmt::Debug for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PortSet({self})")
    }
}

impl FromStr for PortSet {
    type Err = ParsePortSetError;

    fn from_str(text: &str) -> Result<Self, ParsePortSetError> {
        let mut ranges = Vec::new();
        for part in text.split(',') {
            ranges.push(parse_part(part.trim()).map_err(|reason| ParsePortSetError {
                part: part.trim().to_owned(),
                reason,
            })?);
        }
        Ok(Self::from_ranges(ranges).expect("each part has at least one port"))
    }
}

fn parse_part(part: &str) -> Result<RangeInclusive<u16>, BadPart> {
    if part.is_empty() {
        return Err(BadPart::Empty);
    }
    // A sign is not a separator: `-5` is one bad number, not a range without a start.
    let (first, last) = match part.char_indices().find(|&(at, c)| at > 0 && c == '-') {
        Some((at, _)) => (part[..at].trim(), part[at + 1..].trim()),
        None => (part, part),
    };
    let (first, last) = (parse_port(first)?, parse_port(last)?);
    if first > last {
        Err(BadPart::Reversed)
    } else {
        Ok(first..=last)
    }
}

fn parse_port(text: &str) -> Result<u16, BadPart> {
    // `u16::from_str` takes a plus sign; a port has none.
    if text.starts_with('+') {
        return Err(BadPart::NotANumber);
    }
    match text.parse::<u16>() {
        Ok(0) => Err(BadPart::Zero),
        Ok(port) => Ok(port),
        Err(err) if *err.kind() == IntErrorKind::PosOverflow => Err(BadPart::TooLarge),
        Err(_) => Err(BadPart::NotANumber),
    }
}

/// A text that is not a [`PortSet`]: which part of it, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParsePortSetError {
    part: String,
    reason: BadPart,
}

impl ParsePortSetError {
    /// Returns the part between two commas that could not be read, without blanks around it.
    pub fn part(&self) -> &str {
        &self.part
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BadPart {
    Empty,
    NotANumber,
    Zero,
    TooLarge,
    Reversed,
}

impl fmt::Display for ParsePortSetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = &self.part;
        match self.reason {
            BadPart::Empty => f.write_str("a port or a range such as `20000-20999` is missing"),
            BadPart::NotANumber => {
                write!(
                    f,
                    "`{part}` is neither a port nor a range such as `20000-20999`"
                )
            }
            BadPart::Zero => write!(f, "`{part}`: port 0 does not exist, the lowest is 1"),
            BadPart::TooLarge => write!(f, "`{part}`: the highest port is 65535"),
            BadPart::Reversed => write!(f, "`{part}`: the range ends before it starts"),
        }
    }
}

impl std::error::Error for ParsePortSetError {}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(text: &str) -> PortSet {
        text.parse().unwrap()
    }

    #[test]
    fn prints_the_shortest_text_for_what_it_parsed() {
        assert_eq!(set("3,1-2,7-9,8-12").to_string(), "1-3,7-12");
        assert_eq!(set(" 5 , 7 - 8 ").to_string(), "5,7-8");
        assert_eq!(set("1-65535"), PortSet::all());
        assert_eq!(PortSet::all().len(), 65_535);
    }

    #[test]
    fn every_bad_text_names_the_part_and_the_reason() {
        let cases = [
            ("", "", "missing"),
            ("1,,2", "", "missing"),
            ("1,2,", "", "missing"),
            ("80,x", "x", "neither a port"),
            ("-5", "-5", "neither a port"),
            ("+5", "+5", "neither a port"),
            ("1-2-3", "1-2-3", "neither a port"),
            ("5-", "5-", "neither a port"),
            ("8 0", "8 0", "neither a port"),
            ("0", "0", "lowest is 1"),
            ("0-10", "0-10", "lowest is 1"),
            ("65536", "65536", "highest port is 65535"),
            (
                "1-99999999999999999999",
                "1-99999999999999999999",
                "highest port is 65535",
            ),
            ("9-8", "9-8", "ends before it starts"),
        ];
        for (text, part, reason) in cases {
            let err = text.parse::<PortSet>().unwrap_err();
            assert_eq!(err.part(), part, "{text:?}");
            let message = err.to_string();
            assert!(
                message.contains(reason) && message.contains(part),
                "{text:?}: {message}"
            );
        }
    }

    #[test]
    fn nth_counts_across_gaps_and_ends_with_the_set() {
        let ports = set("10-12,20,65535");
        let all: Vec<_> = (0..ports.len())
            .map(|index| ports.nth(index).unwrap())
            .collect();
        assert_eq!(all, [10, 11, 12, 20, 65_535]);
        assert_eq!(ports.nth(5), None);
        assert_eq!(all, ports.iter().collect::<Vec<_>>());
    }

    #[test]
    fn a_block_lies_within_one_run() {
        let ports = set("10-12,14,65534-65535");
        assert!(ports.contains_block(10, 3));
        assert!(!ports.contains_block(10, 4));
        assert!(!ports.contains_block(12, 2));
        assert!(!ports.contains_block(13, 1));
        assert!(ports.contains_block(65_534, 2));
        assert!(!ports.contains_block(65_535, 2));
    }

    /// A port server does this for whoever asks: compared pair by pair, a billion of them, it would
    /// take minutes here.
    #[test]
    fn sets_of_many_runs_are_combined_in_one_pass() {
        let every_other = |first: u16| PortSet::from_ports((first..=u16::MAX).step_by(2)).unwrap();
        let (odd, even) = (every_other(1), every_other(2));
        assert_eq!(odd.intersection(&even), None);
        assert_eq!(odd.difference(&even), Some(odd));
    }

    #[test]
    fn nothing_left_is_none() {
        assert_eq!(set("5").difference(&set("1-10")), None);
        assert_eq!(set("5").difference(&PortSet::all()), None);
        assert_eq!(set("5").intersection(&set("6")), None);
        assert_eq!(PortSet::from_ports([0]), None);
    }
}
