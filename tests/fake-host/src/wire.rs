//! The byte form of header maps at the boundary: count, then the sizes of every
//! name and value (u32 little-endian each), then every name and value with a NUL
//! after each. Apart because both directions and the tests need it.

/// Names and values as bytes, in order, duplicates kept.
pub(crate) type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

/// Serialises `pairs`. An empty map is an empty string, as in Envoy.
pub(crate) fn encode(pairs: &Pairs) -> Vec<u8> {
    if pairs.is_empty() {
        return Vec::new();
    }
    let mut bytes = Vec::new();
    bytes.extend(length(pairs.len()));
    for (name, value) in pairs {
        bytes.extend(length(name.len()));
        bytes.extend(length(value.len()));
    }
    for (name, value) in pairs {
        for part in [name, value] {
            bytes.extend(part);
            bytes.push(0);
        }
    }
    bytes
}

/// Parses what [`encode`] writes. Whatever is malformed is an empty map, as in Envoy.
pub(crate) fn decode(bytes: &[u8]) -> Pairs {
    parse(bytes).unwrap_or_default()
}

fn parse(bytes: &[u8]) -> Option<Pairs> {
    let count = read(bytes, 0)?;
    let mut at = 4 + count.checked_mul(8)?;
    let mut pairs = Vec::new();
    for index in 0..count {
        let mut part = |size: usize| {
            let part = bytes.get(at..at.checked_add(size)?)?.to_vec();
            at += size + 1;
            Some(part)
        };
        let name = part(read(bytes, 4 + index * 8)?)?;
        let value = part(read(bytes, 8 + index * 8)?)?;
        pairs.push((name, value));
    }
    Some(pairs)
}

fn read(bytes: &[u8], at: usize) -> Option<usize> {
    let four = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(four.try_into().ok()?) as usize)
}

fn length(length: usize) -> [u8; 4] {
    u32::try_from(length)
        .expect("a header of less than 4 GiB")
        .to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_survives_the_way_there_and_back() {
        let pairs: Pairs = vec![
            (b":path".to_vec(), b"/".to_vec()),
            (b"empty".to_vec(), Vec::new()),
            (b"x".to_vec(), vec![0xff, 0]),
        ];
        assert_eq!(decode(&encode(&pairs)), pairs);
    }

    #[test]
    fn a_cut_map_is_an_empty_map() {
        let pairs = vec![(b"name".to_vec(), b"value".to_vec())];
        let bytes = encode(&pairs);
        for end in 0..bytes.len() - 1 {
            assert_eq!(decode(&bytes[..end]), Pairs::new(), "cut at {end}");
        }
        assert_eq!(decode(&[0xff; 64]), Pairs::new());
    }
}
