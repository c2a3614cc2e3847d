//! Following through proxies.

use std::time::{Duration, Instant};

use logmirror::mirror::{Mirror, Place, run};

use crate::proxy::{Kind, Proxy};
use crate::service;
use crate::support::log::{commits, header};
use crate::support::service::PATIENCE;

#[test]
fn a_follower_behind_a_proxy_that_holds_back_answers_asks_for_what_is_new() {
    let service = service(|_| {});
    service.append("app", "", &[header(), commits(0, 3, 9, 0)].concat());
    let proxy = Proxy::start(service.address, Kind::BuffersAnswers);
    let copy = tempfile::tempdir().unwrap();
    let sink = copy.path().join("copy");
    let mirror = Mirror { follow: true, ..Mirror::new(Place::Url(proxy.url("app")), Place::Dir(sink.clone())) };
    let file = sink.join(format!("{:020}.stdb.log", 0));
    let has = async |bytes: usize| {
        let since = Instant::now();
        while std::fs::metadata(&file).map_or(0, |file| file.len()) < bytes as u64 {
            assert!(since.elapsed() < PATIENCE, "the commits were never received");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        since.elapsed()
    };
    service.runtime.block_on(async {
        let watching = async {
            let mut bytes = [header(), commits(0, 3, 9, 0)].concat().len();
            has(bytes).await;
            for offset in 3..8 {
                let commit = commits(offset, 1, 9, 0);
                bytes += commit.len();
                service.client("app").append(None, commit).await.unwrap();
                let lag = has(bytes).await;
                assert!(lag < Duration::from_secs(2), "offset {offset}: {lag:?}");
            }
        };
        tokio::select! {
            ended = run(&mirror, |_| ()) => panic!("the follower ended: {ended:?}"),
            () = watching => {}
        }
    });
}

#[test]
fn an_answer_that_is_cut_between_two_commits_is_not_the_end_of_the_log() {
    let service = service(|_| {});
    let stream = [header(), commits(0, 3, 9, 0)].concat();
    service.append("app", "", &stream);
    for kept in [0, 1, 2] {
        let after = [header(), commits(0, kept, 9, 0)].concat().len();
        let proxy = Proxy::start(service.address, Kind::EndsOneAnswer { after });
        let copy = tempfile::tempdir().unwrap();
        let mirror = Mirror::new(Place::Url(proxy.url("app")), Place::Dir(copy.path().join("copy")));
        let done = service.runtime.block_on(run(&mirror, |_| ())).unwrap();
        assert_eq!(done.durable.0, 3, "{kept} commits were received before the cut");
        let file = copy.path().join("copy").join(format!("{:020}.stdb.log", 0));
        assert_eq!(std::fs::read(file).unwrap(), stream);
    }
}
