//! A mirror that is killed at any moment goes on from one whole state, and ends with what the source holds.

use std::time::Duration;

use super::support::commitlog::{Draw, seed};
use super::support::process::{Mirror, arg};
use super::support::sqlite::Sqlite;
use super::{World, content, is_done};

#[test]
fn a_mirror_that_is_killed_over_and_over_ends_with_the_source() {
    let seed = seed();
    let mut draw = Draw(seed);
    let mut world = World::new();
    world.feed();
    let mut reader = None;
    for round in 0..20_u64 {
        let following = Mirror::start(world.url(), arg(&world.replica()), &["--follow"]);
        for part in 0..5 {
            world.fill(200, 100 + round * 40 + part);
            if draw.below(4) == 0 {
                world.app.rows("DELETE FROM t WHERE n % 7 = 3");
            }
            world.feed();
        }
        std::thread::sleep(Duration::from_millis(draw.below(60)));
        let ended = following.kill();
        assert_eq!(world.aside(), [""; 0], "seed {seed}, round {round}: {ended:?}");
        if world.replica().exists() {
            let reader = reader.get_or_insert_with(|| Sqlite::open(&world.replica()));
            assert_eq!(reader.rows("PRAGMA integrity_check")[0][0], "ok");
        }
        // Sometimes nobody has it open, and the last to close it puts the WAL into the database.
        if draw.below(2) == 0
            && let Some(reader) = reader.take()
        {
            reader.close();
        }
    }
    is_done(&world.pull(&[]));
    drop(reader);
    assert_eq!(world.aside(), [""; 0], "nothing was taken for the write of another");
    assert_eq!(content(&world.replica()), world.restored());
}
