//! The clocks of a roster: each condition that a decision depends on, and since when it holds.

use super::{
    cooldown,
    policy::Policy,
    roster::{Moment, Roster},
};

impl Roster {
    /// Updates the clocks: each starts when its condition begins to hold. Call this after all changes of one moment
    /// were applied, and before a decision.
    pub fn observe(&mut self, now: Moment, policy: &Policy) {
        let since = |clock: &mut Option<Moment>, holds: bool| {
            *clock = if holds { Some(clock.unwrap_or(now)) } else { None };
        };
        self.owner = self.find_owner(now);
        let contested = self.is_contested();
        let cooling = cooldown::cooling(self, policy, now);
        let (mut seekers, mut newcomers) = (0, 0);
        for seeker in self.seekers(policy) {
            seekers += 1;
            newcomers += usize::from(!seeker.is_member && !cooling.contains_key(&seeker.id));
        }
        let enough = policy.sizes().largest(seekers).is_some();
        let grows = self.larger_size(newcomers, now, policy).is_some();
        let wanted = self.change_told.is_some() || (seekers > 0 && !self.has_world());
        since(&mut self.contested_since, contested);
        since(&mut self.enough_since, enough);
        since(&mut self.newcomers_since, grows);
        since(&mut self.wanted_since, wanted);
    }
}
