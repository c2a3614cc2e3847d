//! The field `Repr-Digest` of RFC 9530 as it goes with a base: `sha-256=:BASE64:`, from the service and to it.

use std::fmt;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use crate::segment::base::BaseDigest;

/// Its name.
pub(crate) const FIELD: &str = "repr-digest";

const ALGORITHM: &str = "sha-256";

/// The digest of a base, and whether nothing vouches for the base, which the parameter `unproven` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReprDigest {
    pub(crate) sha256: BaseDigest,
    pub(crate) unproven: bool,
}

impl ReprDigest {
    /// The digest in a field; `None` where there is none that we know.
    ///
    /// # Errors
    /// What is wrong with a SHA-256 that is none.
    pub(crate) fn parse(field: &str) -> Result<Option<ReprDigest>, String> {
        let mut members = field.split(',').filter_map(|member| member.trim().split_once('='));
        let Some((_, value)) = members.find(|(algorithm, _)| algorithm.eq_ignore_ascii_case(ALGORITHM)) else {
            return Ok(None);
        };
        let (digest, parameters) = value.split_once(';').unwrap_or((value, ""));
        let encoded = digest.trim().strip_prefix(':').and_then(|digest| digest.strip_suffix(':'));
        let decoded = encoded.and_then(|encoded| BASE64_STANDARD.decode(encoded).ok()?.try_into().ok());
        let sha256 =
            decoded.map(BaseDigest).ok_or_else(|| format!("{value:?} is no SHA-256 in base64 between colons"))?;
        let unproven = parameters.split(';').any(|parameter| parameter.trim() == "unproven");
        Ok(Some(ReprDigest { sha256, unproven }))
    }
}

impl fmt::Display for ReprDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unproven = if self.unproven { ";unproven" } else { "" };
        write!(f, "{ALGORITHM}=:{}:{unproven}", BASE64_STANDARD.encode(self.sha256.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_read_as_it_is_written() {
        for unproven in [false, true] {
            let digest = ReprDigest { sha256: BaseDigest::of(b"a base"), unproven };
            assert_eq!(ReprDigest::parse(&digest.to_string()), Ok(Some(digest)));
        }
        let both = "sha-512=:AAAA:, SHA-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:";
        assert_eq!(ReprDigest::parse(both).ok().flatten().map(|it| it.sha256), Some(BaseDigest::of(b"")));
        assert_eq!(ReprDigest::parse("sha-512=:AAAA:"), Ok(None));
        assert_eq!(ReprDigest::parse(""), Ok(None));
        for wrong in ["sha-256=", "sha-256=:AAAA:", "sha-256=47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="] {
            assert!(ReprDigest::parse(wrong).is_err(), "{wrong}");
        }
    }
}
