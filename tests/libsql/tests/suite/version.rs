//! Where 0.10.0 speaks otherwise than 0.9.1.

/// What a fresh replica asks before anything else.
pub const BOOTSTRAP: &[&str] = &["GET /info", "GET /export/1"];

/// The requests with which frames `first` up to the durable end `end` are pulled, and then found to be all.
pub fn pulls(first: u64, end: u64) -> Vec<String> {
    let mut starts: Vec<_> = (first..end).step_by(128).collect();
    starts.push(end);
    starts.into_iter().map(|start| format!("GET /sync/1/{start}/{}", start + 128)).collect()
}
