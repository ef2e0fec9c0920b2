//! The free ports of a pool, in the order in which they came back: the oldest is given out first.
//!
//! A doubly linked list through two tables that are indexed by port, so that every operation takes
//! the same time however many ports there are. 0, which is no port, is the end of the list.

/// A queue of ports from which any one can be taken.
#[derive(Debug)]
pub(crate) struct FreeOrder {
    /// The one that came back after this one. `next[0]` is the oldest.
    next: Box<[u16]>,
    /// The one that came back before this one. `previous[0]` is the youngest.
    previous: Box<[u16]>,
    /// When each came back: a count, so that some of them can be put in order.
    stamp: Box<[u64]>,
    clock: u64,
    len: usize,
}

impl FreeOrder {
    pub(crate) fn new() -> Self {
        const PORTS: usize = 1 << 16;
        Self {
            next: vec![0; PORTS].into(),
            previous: vec![0; PORTS].into(),
            stamp: vec![0; PORTS].into(),
            clock: 0,
            len: 0,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Returns the oldest port.
    pub(crate) fn first(&self) -> Option<u16> {
        Some(self.next[0]).filter(|&port| port != 0)
    }

    pub(crate) fn contains(&self, port: u16) -> bool {
        port != 0 && self.stamp[usize::from(port)] != 0
    }

    /// Returns a number that is higher for ports that came back later.
    pub(crate) fn stamp(&self, port: u16) -> u64 {
        self.stamp[usize::from(port)]
    }

    /// Adds `port`, which must not be there, as the youngest.
    pub(crate) fn push(&mut self, port: u16) {
        debug_assert!(port != 0 && !self.contains(port), "{port}");
        let last = self.previous[0];
        self.next[usize::from(last)] = port;
        self.previous[usize::from(port)] = last;
        self.next[usize::from(port)] = 0;
        self.previous[0] = port;
        self.clock += 1;
        self.stamp[usize::from(port)] = self.clock;
        self.len += 1;
    }

    /// Takes `port` out. Returns whether it was there.
    pub(crate) fn remove(&mut self, port: u16) -> bool {
        if !self.contains(port) {
            return false;
        }
        let (previous, next) = (
            self.previous[usize::from(port)],
            self.next[usize::from(port)],
        );
        self.next[usize::from(previous)] = next;
        self.previous[usize::from(next)] = previous;
        self.stamp[usize::from(port)] = 0;
        self.len -= 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(order: &mut FreeOrder) -> Vec<u16> {
        std::iter::from_fn(|| {
            let port = order.first()?;
            order.remove(port);
            Some(port)
        })
        .collect()
    }

    #[test]
    fn the_oldest_comes_first_wherever_others_are_taken() {
        let mut order = FreeOrder::new();
        for port in [5, 3, 65_535, 1, 9] {
            order.push(port);
        }
        assert!(order.remove(65_535) && order.remove(5) && !order.remove(5) && !order.remove(7));
        order.push(5);
        assert!(order.stamp(5) > order.stamp(9));
        assert_eq!(order.len(), 4);
        assert_eq!(all(&mut order), [3, 1, 9, 5]);
        assert_eq!((order.len(), order.first()), (0, None));
        order.push(2);
        assert_eq!(all(&mut order), [2]);
    }
}
