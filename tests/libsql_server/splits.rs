//! However a WAL is cut into pushes, and whatever is sent again, the same log comes of it.

use proptest::prelude::*;

use super::{Pushed, Rig, create, holds, push_to, pushed, retold, sender_like};
use crate::support::frames::FrameLog;

/// One step of a sender.
#[derive(Clone, Debug)]
enum Step {
    /// So many frames from where the server stands.
    On(u64),
    /// From so many frames before, up to so many behind.
    Again(u64, u64),
    /// Leaves some out.
    Skip(u64, u64),
    /// The same replica by another name, with an order of words.
    Other(u32, bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (1..9_u64).prop_map(Step::On),
        3 => (1..12_u64, 0..6_u64).prop_map(|(back, on)| Step::Again(back, on)),
        1 => (1..4_u64, 1..4_u64).prop_map(|(skip, count)| Step::Skip(skip, count)),
        1 => (0..4_u32, any::<bool>()).prop_map(|(salt, order)| Step::Other(salt, order)),
    ];
    prop::collection::vec(step, 0..40)
}

fn logs() -> impl Strategy<Value = FrameLog> {
    prop::collection::vec(prop::collection::vec(1..20_u32, 1..8), 1..8)
        .prop_map(|transactions| transactions.iter().fold(sender_like(0, false, 1), |log, pages| log.commit(pages, 20)))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 80, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_split_ends_in_the_same_log(log in logs(), steps in steps()) {
        thread_local!(static RIG: Rig = Rig::new());
        RIG.with(|rig| {
            let name = format!("log-{}", uuid::Uuid::new_v4());
            create(&rig.service, &name);
            let total = log.frames.len() as u64;
            let mut teller = log.clone();
            // What the sender believes is held, and how much of that is durable.
            let (mut held, mut durable) = (0, 0);
            for step in steps.into_iter().chain([Step::On(5), Step::On(total), Step::On(total)]) {
                let (start, end) = match step {
                    Step::On(count) => (held + 1, held + 1 + count),
                    Step::Again(back, on) => (held.saturating_sub(back) + 1, held + 1 + on),
                    Step::Skip(skip, count) => (held + 1 + skip, held + 1 + skip + count),
                    Step::Other(salt, big_endian) => {
                        // Salts are one sender's, and that has one order.
                        let salt = 10 + 2 * salt + u32::from(big_endian);
                        teller = retold(&log, sender_like(salt % 5, big_endian, salt));
                        continue;
                    }
                };
                let end = end.min(total + 1);
                if start >= end {
                    continue;
                }
                match pushed(&push_to(&rig.service, &name, &teller, start..end)) {
                    // Taken, or asked for what is missing: a new name has staged nothing, an old one what it had.
                    Pushed::Ok(last) if last == end - 1 => held = held.max(last),
                    // Or asked what it made of a frame that is known, or to say the first once more.
                    Pushed::Ok(last) if teller.header.sequence > 0 && last == start.saturating_sub(2) => held = last,
                    Pushed::Ok(last) => {
                        prop_assert!(last < start - 1 && last >= durable, "{start}..{end}: {last}");
                        held = last;
                    }
                    Pushed::Conflict(last) => prop_assert!(false, "conflict at {last} of {start}..{end}"),
                }
                let commits = log.commits();
                durable = commits.into_iter().filter(|commit| *commit <= held).max().unwrap_or(0).max(durable);
            }
            for (start, end) in [(held + 1, total + 1), (1, total + 1)] {
                if start < end {
                    let mut last = pushed(&push_to(&rig.service, &name, &teller, start..end));
                    if teller.header.sequence > 0 && last == Pushed::Ok(0) {
                        last = pushed(&push_to(&rig.service, &name, &teller, start..end));
                    }
                    prop_assert!(last == Pushed::Ok(total) || start > 1, "{last:?}");
                }
            }
            holds(&rig.service, &name, &log);
            Ok(())
        })?;
    }
}
