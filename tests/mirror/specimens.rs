//! Every specimen gets its verdict, and what is sound of it arrives byte for byte.

use crate::support::process::{Ended, Service, arg, mirror};
use crate::support::{Expect, expectations, segments, specimen};
use crate::{is_done, moved, untouched, whole_up_to};

fn is_as_expected(ended: &Ended, expect: &Expect) {
    let error = match (&expect.error, expect.trailing) {
        (Some(error), _) => format!("source: {error}"),
        (None, Some(bytes)) => format!("the source ends in {bytes} torn bytes behind offset {}", expect.next),
        (None, None) => return is_done(ended, expect.commits, expect.next),
    };
    assert_eq!(ended.code, Some(1), "{}: {ended:?}", expect.name);
    assert_eq!(moved(ended, "failed"), (expect.commits, expect.next), "{}", expect.name);
    assert!(ended.error().starts_with(&error), "{}: {}", expect.name, ended.error());
    assert!(ended.errors.contains(&error), "{}: {}", expect.name, ended.errors);
}

#[test]
fn every_specimen_goes_through_a_service_and_back_with_its_verdict() {
    let data = tempfile::tempdir().unwrap();
    let service = Service::start(data.path());
    for expect in expectations() {
        let (name, source) = (expect.name.as_str(), specimen(&expect.name));
        let (url, relayed, copy) = (service.url(name), format!("relay.{name}"), tempfile::tempdir().unwrap());
        let wanted = whole_up_to(expect.next);

        is_as_expected(&untouched(&source, || mirror(arg(&source), &url, &[])), &expect);
        assert!(segments(&service.segments_of(name)) == wanted, "{name} in the service");
        is_done(&mirror(&url, arg(copy.path()), &[]), expect.commits, expect.next);
        assert!(segments(copy.path()) == wanted, "{name} in a directory");
        is_done(&mirror(&url, service.url(&relayed), &[]), expect.commits, expect.next);
        assert!(segments(&service.segments_of(&relayed)) == wanted, "{name} relayed");
    }
}

#[test]
fn every_specimen_is_copied_to_a_directory_with_its_verdict_every_time() {
    for expect in expectations() {
        let (source, copy) = (specimen(&expect.name), tempfile::tempdir().unwrap());
        let again = Expect { commits: 0, name: expect.name.clone(), error: expect.error.clone(), ..expect };
        for expect in [&expect, &again] {
            is_as_expected(&untouched(&source, || mirror(arg(&source), arg(copy.path()), &[])), expect);
            assert!(segments(copy.path()) == whole_up_to(expect.next), "{}", expect.name);
        }
    }
}

#[test]
fn trim_accepts_a_torn_end_of_the_source_and_nothing_else() {
    for expect in expectations().into_iter().filter(|expect| !expect.is_sound()) {
        let (source, copy) = (specimen(&expect.name), tempfile::tempdir().unwrap());
        let ended = untouched(&source, || mirror(arg(&source), arg(copy.path()), &["--trim"]));
        is_as_expected(&ended, &Expect { trailing: None, name: expect.name.clone(), ..expect });
    }
}
