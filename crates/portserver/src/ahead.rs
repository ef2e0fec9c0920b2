//! Which ports earlier requests wait for: later ones leave them alone, and may have the others.

use std::borrow::Cow;

use portpicker::PortSet;

use crate::pool::Wish;

/// The ports that those who wait could get.
#[derive(Debug, Default)]
pub(crate) enum Ahead {
    #[default]
    Nothing,
    Ports(PortSet),
    All,
}

impl Ahead {
    /// Returns what all these want.
    pub(crate) fn of<'a>(wishes: impl IntoIterator<Item = &'a Wish>) -> Self {
        let mut ahead = Self::Nothing;
        for wish in wishes {
            ahead.add(wish);
            if matches!(ahead, Self::All) {
                break;
            }
        }
        ahead
    }

    /// Adds what one more wants.
    pub(crate) fn add(&mut self, wish: &Wish) {
        let Some(ports) = &wish.ports else {
            *self = Self::All;
            return;
        };
        let preferred = PortSet::from_ports(wish.prefer.iter().copied());
        let wanted = preferred.map_or_else(|| ports.clone(), |set| ports.union(&set));
        *self = match std::mem::take(self) {
            Self::Nothing => Self::Ports(wanted),
            Self::Ports(others) => Self::Ports(others.union(&wanted)),
            Self::All => Self::All,
        };
    }

    /// Returns what is left for `wish` in `pool`; `None` if it is nothing.
    pub(crate) fn leaves<'a>(&self, wish: &'a Wish, pool: &PortSet) -> Option<Cow<'a, Wish>> {
        match self {
            Self::Nothing => Some(Cow::Borrowed(wish)),
            Self::All => None,
            Self::Ports(others) => {
                let ports = wish.ports.as_ref().unwrap_or(pool).difference(others);
                let mut prefer = wish.prefer.clone();
                prefer.retain(|port| !others.contains(*port));
                Some(Cow::Owned(Wish {
                    // Preferred ports are allowed wherever they are, and may be all there is.
                    ports: Some(ports.or_else(|| PortSet::from_ports(prefer.iter().copied()))?),
                    prefer,
                    ..*wish
                }))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(ports: &str, prefer: &[u16]) -> Wish {
        Wish {
            count: 1,
            ports: (!ports.is_empty()).then(|| ports.parse().unwrap()),
            prefer: prefer.to_vec(),
            ..Wish::default()
        }
    }

    #[test]
    fn what_others_wait_for_is_left_to_them() {
        let pool: PortSet = "1-10".parse().unwrap();
        let ahead = Ahead::of([&wish("2-3", &[9]), &wish("3-4", &[])]);
        let left = |ports, prefer| {
            let wish = wish(ports, prefer);
            let left = ahead.leaves(&wish, &pool)?.into_owned();
            Some((left.ports.unwrap().to_string(), left.prefer))
        };
        assert_eq!(left("", &[]), Some(("1,5-8,10".into(), vec![])));
        assert_eq!(left("3-6", &[4, 5, 9]), Some(("5-6".into(), vec![5])));
        assert_eq!(left("2-4", &[8]), Some(("8".into(), vec![8])));
        assert_eq!(left("2-4", &[9]), None);
    }

    #[test]
    fn who_wants_any_port_is_ahead_of_all_and_nobody_of_none() {
        let pool: PortSet = "1-10".parse().unwrap();
        let any = wish("", &[]);
        assert!(
            Ahead::of([&wish("2", &[]), &any])
                .leaves(&wish("5", &[]), &pool)
                .is_none()
        );
        assert!(matches!(
            Ahead::default().leaves(&any, &pool),
            Some(Cow::Borrowed(_))
        ));
    }
}
