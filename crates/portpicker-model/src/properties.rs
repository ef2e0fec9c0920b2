//! What must be true in every state, and what must be possible at all.

use stateright::{Model, Property};

use crate::rules::{Action, Ending, Rules};
use crate::state::{Lease, MOST, Pick, Port, STRANGER, Stage, State, Way};

/// A living process and those that it has forked are the only ones that know a port to be theirs.
pub const NOT_TWICE: &str = "no port is leased twice";

/// Nobody has bound a port at the moment at which it is leased.
pub const NOT_IN_USE: &str = "no port is leased that is in use";

/// No port is probed that is somebody's: the owner's bind would fail.
pub const NOT_IN_THE_WAY: &str = "no probe is in the way of an owner";

/// Whatever has happened, a port whose owner is gone can be leased again, though all others live on.
pub const NOT_LOST: &str = "no port is lost";

/// In the end, somebody has the lock of each port that the server has leased.
pub const LOCKED: &str = "what the server has leased is locked";

pub(crate) fn of(rules: &Rules) -> Vec<Property<Rules>> {
    let always = Property::<Rules>::always;
    // Where these never happen, the others say little.
    let sometimes = Property::<Rules>::sometimes;
    let by_fork = sometimes("a child shares a lease", |rules, state| {
        (0..rules.ports).any(|port| state.ways(port).count() > 1)
    });
    let by_command = sometimes("a keeper outlives its command", |_, state| {
        state.picks().count() == 0
            && state
                .keepers
                .iter()
                .flatten()
                .any(|kept| state.lives(kept.owner))
    });
    let by_server = sometimes("a lease outlives the server", |rules, state| {
        let is_leased = |&port: &Port| state.ways(port).any(|way| way == Way::Server);
        !state.server.is_up && rules.pool.iter().any(is_leased)
    });
    let by_namesake = sometimes("a number is another's", |_, state| {
        state
            .file
            .iter()
            .flatten()
            .any(|owner| !state.lives(*owner) && state.lives(state.with_number(owner.number)))
    });
    let mut all = vec![
        always(NOT_TWICE, |_, state| !state.leased_twice),
        always(NOT_IN_USE, |_, state| !state.leased_in_use),
        always(NOT_IN_THE_WAY, |_, state| {
            state.picks().all(|pick| match pick.stage {
                Stage::Probing(port) => state.ways(port).count() == 0,
                _ => true,
            })
        }),
        always(NOT_LOST, no_port_is_lost),
        always(LOCKED, |rules, state| {
            let state = &settle(rules, *state);
            let is_leased = |port: Port| state.server.leases[port].is_some();
            rules
                .pool
                .iter()
                .all(|&port| !is_leased(port) || rules.is_locked(state, port))
        }),
        sometimes("every port is leased", |rules, state| {
            (0..rules.ports).all(|port| state.ways(port).count() > 0)
        }),
    ];
    all.extend(rules.has_forks.then_some(by_fork));
    all.extend(rules.has_commands.then_some(by_command));
    all.extend((rules.ending != Ending::Never).then_some(by_server));
    all.extend((!rules.pool.is_empty() && rules.generations > 1).then_some(by_namesake));
    all
}

fn no_port_is_lost(rules: &Rules, state: &State) -> bool {
    let state = settle(rules, *state);
    let lives = |lease: Option<Lease>| lease.is_some_and(|lease| state.lives(lease.owner));
    (0..rules.ports).all(|port| {
        let can_be_leased = !rules.is_locked(&state, port)
            && state.server.leases[port].is_none()
            && !state.is_in_use(port);
        // Also if it does not know, because its client was killed; and if it has returned the port
        // and uses it on, or shares it with a child.
        let has_owner = state.ways(port).count() > 0
            || state.processes.iter().any(|process| process.locks[port])
            || state.bound[port].is_some()
            || lives(state.server.leases[port])
            || lives(state.keepers[port]);
        can_be_leased || has_owner
    })
}

/// Lets everything come to its end that does so by itself: strangers leave, clients hang up that wait,
/// a server that is away comes back, and the others do what they are about to do. No process exits.
fn settle(rules: &Rules, mut state: State) -> State {
    for _ in 0..100 {
        let by_pick = |place: usize| {
            let waits = |pick: Pick| matches!(pick.stage, Stage::Asked | Stage::Waiting);
            let hangs_up = state.picks[place].is_some_and(waits);
            let goes_on = [Action::Probe, Action::Lease, Action::Save, Action::Tell];
            let goes_on = goes_on.map(|action| action(place));
            goes_on
                .into_iter()
                .chain(hangs_up.then_some(Action::Abandon(place)))
        };
        let of_port = |port: Port| {
            let leaves = state.bound[port] == Some(STRANGER);
            let ends = [Action::KeeperEnds, Action::Reclaim, Action::LockAgain];
            let ends = ends.map(|action| action(port));
            ends.into_iter()
                .chain(leaves.then_some(Action::Unbind(port)))
        };
        let mut actions = (0..MOST)
            .flat_map(by_pick)
            .chain((0..rules.ports).flat_map(of_port))
            .chain([Action::ServerStarts]);
        match actions.find_map(|action| rules.next_state(&state, action)) {
            Some(next) => state = next,
            None => return state,
        }
    }
    panic!("this never comes to rest: {state:?}");
}
