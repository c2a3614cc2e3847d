//! Rows as SQLite stores them. Source: <https://sqlite.org/fileformat2.html>, section 2.1.
//!
//! ```text
//! record := header_len varint, type varint*, value*
//! type   := 0 NULL · 1..=6 integer of 1, 2, 3, 4, 6, 8 bytes · 7 float · 8 zero · 9 one
//!           even, from 12: a blob of (type - 12) / 2 bytes · odd, from 13: a text of (type - 13) / 2 bytes
//! ```
//!
//! All integers are big-endian. A record may have fewer values than its table has columns: those were added later.

/// A value of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Stored<'a> {
    /// NULL, and the place of a rowid that has a name.
    Null,
    /// An integer.
    Integer(i64),
    /// A float, never a NaN.
    Float(f64),
    /// A text: UTF-8 if its writer was careful.
    Text(&'a [u8]),
    /// Bytes.
    Blob(&'a [u8]),
}

/// SQLite has no tables with more columns.
const VALUES_MAX: usize = 32_767;

/// The number at the front of `bytes` and what follows it; `None` when it is cut.
pub(super) fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut number = 0;
    for (at, byte) in bytes.iter().take(9).enumerate() {
        if at == 8 {
            return Some((number << 8 | u64::from(*byte), &bytes[9..]));
        }
        number = number << 7 | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            return Some((number, &bytes[at + 1..]));
        }
    }
    None
}

/// The values of a record, in order; `None` when it is damaged.
#[must_use]
pub fn values(record: &[u8]) -> Option<Vec<Stored<'_>>> {
    let (header_len, types) = varint(record)?;
    let header_len = usize::try_from(header_len).ok()?;
    let mut types = types.get(..header_len.checked_sub(record.len() - types.len())?)?;
    let mut body = record.get(header_len..)?;
    let mut found = Vec::new();
    while !types.is_empty() {
        if found.len() == VALUES_MAX {
            return None;
        }
        let (kind, rest) = varint(types)?;
        types = rest;
        let len = match kind {
            0 | 8 | 9 => 0,
            1..=4 => kind as usize,
            5 => 6,
            6 | 7 => 8,
            10 | 11 => return None,
            _ => usize::try_from((kind - 12) / 2).ok()?,
        };
        let (bytes, rest) = body.split_at_checked(len)?;
        body = rest;
        found.push(match kind {
            0 => Stored::Null,
            8 => Stored::Integer(0),
            9 => Stored::Integer(1),
            1..=6 => Stored::Integer(integer(bytes)),
            // SQLite takes what is no number for a NULL.
            7 => match f64::from_bits(integer(bytes) as u64) {
                float if float.is_nan() => Stored::Null,
                float => Stored::Float(float),
            },
            _ if kind % 2 == 0 => Stored::Blob(bytes),
            _ => Stored::Text(bytes),
        });
    }
    Some(found)
}

/// A big-endian integer with a sign, of up to 8 bytes.
fn integer(bytes: &[u8]) -> i64 {
    let sign = bytes.first().map_or(0, |first| i64::from(*first as i8) >> 7);
    bytes.iter().fold(sign, |number, byte| number << 8 | i64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_every_type_read_back() {
        let record = [
            &[13, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 17][..],
            &[0xff, 0x80, 0, 1, 2, 3, 0xff, 0xff, 0xff, 0xfe],
            &[0, 0, 0, 0, 0, 9, 0x80, 0, 0, 0, 0, 0, 0, 0],
            &1.5_f64.to_be_bytes(),
            &[1, 2],
            b"ab",
        ]
        .concat();
        let wanted = [
            Stored::Null,
            Stored::Integer(-1),
            Stored::Integer(-32768),
            Stored::Integer(0x01_0203),
            Stored::Integer(-2),
            Stored::Integer(9),
            Stored::Integer(i64::MIN),
            Stored::Float(1.5),
            Stored::Integer(0),
            Stored::Integer(1),
            Stored::Blob(&[1, 2]),
            Stored::Text(b"ab"),
        ];
        assert_eq!(values(&record).as_deref(), Some(&wanted[..]));
        for cut in 0..record.len() {
            assert_eq!(values(&record[..cut]), None, "{cut}");
        }
    }

    #[test]
    fn numbers_have_up_to_nine_bytes() {
        assert_eq!(varint(&[0x7f, 5]), Some((0x7f, &[5][..])));
        assert_eq!(varint(&[0x81, 0]), Some((128, &[][..])));
        assert_eq!(varint(&[0xff; 9]), Some((u64::MAX, &[][..])));
        assert_eq!(varint(&[0xff; 8]), None);
    }
}
