//! Where 0.9.1 speaks otherwise than 0.10.0.

/// A fresh replica asks nothing.
pub const BOOTSTRAP: &[&str] = &[];

/// The requests with which frames `first` up to the durable end `end` are pulled, and then found to be all.
pub fn pulls(first: u64, end: u64) -> Vec<String> {
    (first..=end).map(|start| format!("GET /sync/1/{start}/{}", start + 1)).collect()
}
