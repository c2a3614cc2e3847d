//! Disks that fail while SQL commits: what its client is told, and what is in the log then.

use std::sync::Arc;

use serde_json::{Value, json};

use super::support::failing::{Failing, Plan, Trouble};
use super::support::service::{Answer, Setup};
use super::{Rig, execute, start_on};

fn rig() -> (Rig, Arc<Plan>) {
    let mut plan = None;
    let service = start_on(Setup::default(), |disk| {
        let (failing, its_plan) = Failing::new(disk);
        plan = Some(its_plan);
        failing
    });
    let rig = Rig::of(service);
    rig.run("CREATE TABLE t(a)");
    (rig, plan.unwrap())
}

/// Inserts a row while there is trouble with the disk, which is over then. The answer, and how often the row is there.
fn insert(rig: &Rig, plan: &Plan, trouble: Trouble, lasting: bool) -> (Answer, Value) {
    let mut requests = vec![execute("INSERT INTO t VALUES (1)")];
    requests.extend((!lasting).then(|| json!({"type": "close"})));
    plan.set("logs/app", trouble);
    let answer = rig.try_call(&Value::Null, &requests.into());
    plan.clear();
    rig.service.wait_state("app", "ok");
    let rows = rig.rows("SELECT count(*) FROM t")[0][0].clone();
    rig.run("DELETE FROM t");
    (answer, rows)
}

#[test]
fn a_commit_whose_sync_fails_is_answered_as_one_that_may_be_there_and_not_as_one_to_send_again() {
    let (rig, plan) = rig();
    for lasting in [true, false] {
        let (answer, _unknown) = insert(&rig, &plan, Trouble::SyncFails, lasting);
        assert_eq!(answer.refusal(), (500, "sql-aborted".to_owned()), "{}", answer.text());
        assert_eq!(answer.header("retry-after"), None);
        let text = answer.text();
        assert!(text.contains("SyncFails") && text.contains("is known once the log is reopened"), "{text}");
    }
}

#[test]
fn a_commit_that_was_not_written_is_not_there_and_may_be_sent_again() {
    let (rig, plan) = rig();
    for trouble in [Trouble::DiskFull, Trouble::ReadOnly] {
        for lasting in [true, false] {
            let (answer, rows) = insert(&rig, &plan, trouble, lasting);
            assert_eq!(answer.refusal(), (503, "failed".to_owned()), "{}", answer.text());
            assert!(answer.header("retry-after").is_some());
            assert_eq!(rows, "0", "{trouble:?}");
        }
    }
}
