//! Draining: backends that an operator wants no new flows at.

use std::net::SocketAddr;

use super::{State, SwitchError};
use crate::model::drain::Drained;

impl State {
    /// The backends of a pool that are meant: those named, or all.
    ///
    /// # Errors
    ///
    /// There is no such pool, or it has no such backend.
    pub fn backends_of(
        &self,
        pool: &str,
        named: &[SocketAddr],
    ) -> Result<Vec<SocketAddr>, SwitchError> {
        let pools = self.pools();
        let Some(spec) = pools.get(pool) else {
            let known = pools.into_keys().collect();
            return Err(SwitchError::UnknownPool { asked: pool.to_owned(), known });
        };
        let all: Vec<SocketAddr> = spec.backends.iter().map(|backend| backend.address).collect();
        match named.iter().find(|named| !all.contains(named)) {
            Some(&asked) => Err(SwitchError::UnknownBackend {
                pool: pool.to_owned(),
                asked,
                known: all.iter().map(ToString::to_string).collect(),
            }),
            None if named.is_empty() => Ok(all),
            None => Ok(named.to_vec()),
        }
    }

    /// Drains backends of a pool, or lets them take new flows again. Returns what was drained before, for
    /// [`State::restore_drained`].
    ///
    /// # Errors
    ///
    /// There is no such pool or backend; a service that has somebody to take its new flows would have nobody,
    /// and `force` is not set. Nothing has changed.
    pub fn drain(
        &mut self,
        pool: &str,
        named: &[SocketAddr],
        drained: bool,
        force: bool,
    ) -> Result<Drained, SwitchError> {
        let backends = self.backends_of(pool, named)?;
        let served = |state: &Self| {
            let users = state.users_of(pool).into_iter();
            let served = |name: &_| state.split(name).is_some_and(|s| !s.stable.is_starved(state));
            users.filter(served).map(|name| name.to_string()).collect::<Vec<_>>()
        };
        let served_before = served(self);
        let before = self.drained.clone();
        self.drained.set(pool, &backends, drained);
        let served_now = served(self);
        let lost: Vec<_> =
            served_before.into_iter().filter(|name| !served_now.contains(name)).collect();
        if !force && !lost.is_empty() {
            self.drained = before;
            let services = lost.join(", ");
            return Err(SwitchError::LastOnes { pool: pool.to_owned(), services });
        }
        Ok(before)
    }

    /// Puts back what was drained before.
    pub fn restore_drained(&mut self, before: Drained) {
        self.drained = before;
    }
}
