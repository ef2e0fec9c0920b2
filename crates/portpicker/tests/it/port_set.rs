//! Properties of sets of ports, against the standard library's sets as a model.

use std::collections::BTreeSet;

use portpicker::PortSet;
use proptest::collection::vec;
use proptest::prelude::*;

/// Without files beside the tests: a failure prints its smallest input.
fn config() -> ProptestConfig {
    ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// Ranges that often touch, overlap, or are empty, and some anywhere.
fn ranges() -> impl Strategy<Value = Vec<std::ops::RangeInclusive<u16>>> {
    let near = (0..200_u16, 0..20_u16).prop_map(|(first, more)| first..=first + more);
    let reversed = (1..200_u16).prop_map(|first| first..=first - 1);
    let anywhere =
        (any::<u16>(), 0..50_u16).prop_map(|(first, more)| first..=first.saturating_add(more));
    vec(prop_oneof![4 => near, 1 => reversed, 2 => anywhere], 0..12)
}

/// A set, and its model.
fn modelled() -> impl Strategy<Value = (PortSet, BTreeSet<u16>)> {
    ranges().prop_filter_map("a set of ports is never empty", |ranges| {
        let model = ranges.iter().cloned().flatten().filter(|port| *port != 0);
        Some((PortSet::from_ranges(ranges.clone())?, model.collect()))
    })
}

/// What is almost a set's text.
fn almost() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        "[0-9]{1,6}",
        "[0-9]{1,6}-[0-9]{1,6}",
        "[ \t]?[0-9+-]{0,4}[ ,]{0,2}[0-9]{0,6}",
        "\\PC{0,3}",
    ];
    vec(part, 0..4).prop_map(|parts| parts.join(","))
}

fn model_of(set: Option<&PortSet>) -> BTreeSet<u16> {
    set.map(|set| set.iter().collect()).unwrap_or_default()
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_set_is_empty_only_if_its_ranges_are(ranges in ranges()) {
        let is_empty = ranges.iter().cloned().flatten().all(|port| port == 0);
        prop_assert_eq!(PortSet::from_ranges(ranges).is_none(), is_empty);
    }

    #[test]
    fn printing_and_parsing_gives_the_same_set((set, _) in modelled()) {
        let text = set.to_string();
        prop_assert_eq!(text.parse::<PortSet>(), Ok(set));
    }

    /// So that two texts of one set are equal, and the shortest is chosen.
    #[test]
    fn parsing_and_printing_is_stable(text in almost()) {
        if let Ok(set) = text.parse::<PortSet>() {
            let printed = set.to_string();
            prop_assert_eq!(printed.parse::<PortSet>().unwrap().to_string(), printed);
        }
    }

    #[test]
    fn a_set_has_the_ports_of_its_ranges((set, model) in modelled()) {
        prop_assert_eq!(set.iter().collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>());
        prop_assert_eq!(set.len(), model.len());
        prop_assert_eq!(PortSet::from_ports(model.iter().copied()), Some(set.clone()));
        for (index, port) in model.iter().enumerate() {
            prop_assert_eq!(set.nth(index), Some(*port));
        }
        prop_assert_eq!(set.nth(model.len()), None);
    }

    #[test]
    fn a_set_contains_what_its_model_contains((set, model) in modelled(), port in any::<u16>()) {
        for port in (0..300).chain([port, 65_534, 65_535]) {
            prop_assert_eq!(set.contains(port), model.contains(&port), "{}", port);
        }
    }

    #[test]
    fn ranges_are_ascending_and_the_fewest((set, model) in modelled()) {
        let ranges: Vec<_> = set.ranges().collect();
        for pair in ranges.windows(2) {
            prop_assert!(u32::from(*pair[0].end()) + 1 < u32::from(*pair[1].start()));
        }
        prop_assert_eq!(ranges.into_iter().flatten().collect::<BTreeSet<_>>(), model);
    }

    #[test]
    fn set_operations_are_those_of_the_model(
        (a, model_a) in modelled(),
        (b, model_b) in modelled(),
    ) {
        prop_assert_eq!(model_of(Some(&a.union(&b))), &model_a | &model_b);
        prop_assert_eq!(model_of(a.intersection(&b).as_ref()), &model_a & &model_b);
        prop_assert_eq!(model_of(a.difference(&b).as_ref()), &model_a - &model_b);
    }

    #[test]
    fn every_set_is_all_without_the_rest((set, _) in modelled()) {
        let rest = PortSet::all().difference(&set).unwrap();
        prop_assert_eq!(PortSet::all().difference(&rest), Some(set.clone()));
        prop_assert_eq!(set.intersection(&rest), None);
        prop_assert_eq!(set.union(&rest), PortSet::all());
    }

    #[test]
    fn any_text_is_a_set_or_an_error_that_names_a_part_of_it(text in "\\PC{0,40}") {
        check_parse(&text)?;
    }

    #[test]
    fn any_text_that_looks_like_a_set_is_one_or_an_error_that_names_a_part(text in almost()) {
        check_parse(&text)?;
    }
}

#[test]
fn no_index_beyond_a_set_has_a_port() {
    for text in ["1", "10-12,20", "1-65535"] {
        let set: PortSet = text.parse().unwrap();
        for index in [
            set.len(),
            65_536,
            usize::MAX / 2,
            usize::MAX - 1,
            usize::MAX,
        ] {
            assert_eq!(set.nth(index), None, "{text}: {index}");
        }
    }
}

fn check_parse(text: &str) -> Result<(), TestCaseError> {
    match text.parse::<PortSet>() {
        Ok(set) => {
            prop_assert!(set.len() > 0);
            prop_assert!(!set.contains(0));
        }
        Err(err) => {
            let mut parts = text.split(',').map(str::trim);
            prop_assert!(parts.any(|part| part == err.part()), "{:?}", err);
            let message = err.to_string();
            prop_assert!(message.contains(err.part()), "{}", message);
            prop_assert!(!message.ends_with('.') && !message.contains('\n'));
        }
    }
    Ok(())
}
