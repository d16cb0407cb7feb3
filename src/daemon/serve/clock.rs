//! Whether the system's clock was set: certificates, budgets and the times of records go by it.

use std::time::{Duration, SystemTime};

use rustix::time::{ClockId, clock_gettime};

/// A smaller step is not told: time services correct by less in ordinary life.
const STEP: Duration = Duration::from_mins(5);

/// The wall clock beside one that no user sets.
#[derive(Debug)]
pub(super) struct Clock {
    wall: SystemTime,
    steady: Duration,
}

/// By how much the clock was set.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ClockStep {
    /// So much.
    pub(super) by: Duration,
    /// Forward, or back.
    pub(super) is_forward: bool,
}

impl Clock {
    /// From now on.
    pub(super) fn start() -> Self {
        Self { wall: SystemTime::now(), steady: since_boot() }
    }

    /// Whether the clock was set by more than five minutes since this was asked last.
    pub(super) fn step(&mut self) -> Option<ClockStep> {
        self.step_at(SystemTime::now(), since_boot())
    }

    fn step_at(&mut self, wall: SystemTime, steady: Duration) -> Option<ClockStep> {
        let expected = self.wall + steady.saturating_sub(self.steady);
        (self.wall, self.steady) = (wall, steady);
        let (by, is_forward) = match wall.duration_since(expected) {
            Ok(forward) => (forward, true),
            Err(back) => (back.duration(), false),
        };
        (by > STEP).then_some(ClockStep { by, is_forward })
    }
}

/// The time since the machine started, asleep or awake: a machine that slept is no clock that was set.
fn since_boot() -> Duration {
    #[cfg(target_os = "linux")]
    const CLOCK: ClockId = ClockId::Boottime;
    #[cfg(not(target_os = "linux"))]
    const CLOCK: ClockId = ClockId::Monotonic;
    let now = clock_gettime(CLOCK);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_by_more_than_five_minutes_is_found_once_in_either_direction() {
        let mut clock = Clock::start();
        let (wall, steady) = (clock.wall, clock.steady);
        let minutes = |minutes: u64| Duration::from_mins(minutes);
        assert_eq!(clock.step_at(wall + minutes(9), steady + minutes(9)), None, "time passed");
        assert_eq!(clock.step_at(wall + minutes(14), steady + minutes(10)), None, "four minutes");
        let forward = clock.step_at(wall + minutes(20), steady + minutes(10));
        assert_eq!(forward, Some(ClockStep { by: minutes(6), is_forward: true }));
        assert_eq!(clock.step_at(wall + minutes(21), steady + minutes(11)), None, "once");
        let back = clock.step_at(wall, steady + minutes(12));
        assert_eq!(back, Some(ClockStep { by: minutes(22), is_forward: false }));
    }
}
