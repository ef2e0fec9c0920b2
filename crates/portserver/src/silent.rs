//! The clients that have said nothing yet: the first to go when there is no room for others.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use tokio::sync::Notify;

/// The connections on which nothing has come, the oldest first.
#[derive(Debug, Default)]
pub(crate) struct Silent {
    clients: RefCell<BTreeMap<u64, Rc<Notify>>>,
}

impl Silent {
    /// Waits for `spoken`, what ends a client's silence; `None` if the client has to go before.
    pub(crate) async fn unless_closed<T>(&self, spoken: impl Future<Output = T>) -> Option<T> {
        let close = Rc::new(Notify::new());
        let number = {
            let mut clients = self.clients.borrow_mut();
            let number = clients.last_key_value().map_or(0, |(last, _)| last + 1);
            clients.insert(number, Rc::clone(&close));
            number
        };
        let result = tokio::select! {
            // What has come counts, even if there is no room at the same moment.
            biased;
            result = spoken => Some(result),
            () = close.notified() => None,
        };
        self.clients.borrow_mut().remove(&number);
        result
    }

    /// Lets the one go that has been silent for longest.
    pub(crate) fn close_oldest(&self) {
        // Taken out at once: the next call is to find another.
        if let Some((_, close)) = self.clients.borrow_mut().pop_first() {
            close.notify_one();
        }
    }
}
