//! What is remembered of callers, in shards, so that calls hardly wait for each other.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::{Mutex, PoisonError},
};

use super::Caller;

const SHARDS: usize = 16;
/// Callers remembered in a shard before those are forgotten of whom there is nothing left to remember. If most are to be
/// remembered, that is looked at again when there are twice as many: looking costs as much as there are.
const SHARD_LIMIT: usize = 8192;

/// Something of each caller.
#[derive(Debug)]
pub(super) struct Callers<State> {
    hasher: RandomState,
    shards: [Mutex<Shard<State>>; SHARDS],
}

#[derive(Debug)]
struct Shard<State> {
    states: HashMap<Caller, State>,
    /// How many there may be before some are forgotten.
    limit: usize,
}

impl<State> Callers<State> {
    pub(super) fn new() -> Self {
        let empty = |_| Mutex::new(Shard { states: HashMap::new(), limit: SHARD_LIMIT });
        Self { hasher: RandomState::new(), shards: std::array::from_fn(empty) }
    }

    /// Does something to what is remembered of a caller, which is `new` at first. What `is_over` may be forgotten.
    pub(super) fn with<T>(
        &self,
        caller: Caller,
        new: impl FnOnce() -> State,
        is_over: impl Fn(&State) -> bool,
        act: impl FnOnce(&mut State) -> T,
    ) -> T {
        let shard = &self.shards[self.hasher.hash_one(caller) as usize % SHARDS];
        let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
        if shard.states.len() >= shard.limit {
            shard.states.retain(|_, state| !is_over(state));
            shard.limit = SHARD_LIMIT.max(2 * shard.states.len());
        }
        act(shard.states.entry(caller).or_insert_with(new))
    }

    /// How many are remembered.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().unwrap().states.len()).sum()
    }

    /// How many may be before some are forgotten.
    #[cfg(test)]
    pub(super) const LIMIT: usize = SHARD_LIMIT * SHARDS;
}
