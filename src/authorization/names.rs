//! The metric names of one record, with the parents that service management showed.
//!
//! Apart from the record because it is all index arithmetic: everything else in a
//! record speaks of a metric by its place here.

use std::ops::Range;

/// Up to 64 names, so that a set of them is one `u64`. Every parent is a name here.
#[derive(Clone, Debug, Default)]
pub struct Names {
    texts: Vec<u8>,
    entries: Vec<Entry>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    start: u32,
    length: u8,
    parent: u8,
}

impl Entry {
    fn range(self) -> Range<usize> {
        let start = usize::try_from(self.start).unwrap_or(usize::MAX);
        start..start.saturating_add(usize::from(self.length))
    }
}

impl Names {
    /// "No parent", here and in the byte layout.
    pub const NO_PARENT: u8 = u8::MAX;

    /// Most names of a record.
    pub const MOST: usize = 64;

    /// How many names there are.
    pub const fn len(&self) -> usize {
        self.entries.len()
    }

    /// Forgets all names.
    pub fn clear(&mut self) {
        self.texts.clear();
        self.entries.clear();
    }

    /// The set that holds only this name.
    pub fn bit(name: u8) -> u64 {
        1_u64.checked_shl(u32::from(name)).unwrap_or(0)
    }

    /// The text of a name; empty for an index that is none, and for bytes that only a
    /// corrupt value can hold.
    pub fn text(&self, name: u8) -> &str {
        std::str::from_utf8(self.bytes(name)).unwrap_or_default()
    }

    /// The parent of a name.
    pub fn parent(&self, name: u8) -> Option<u8> {
        self.entries
            .get(usize::from(name))
            .map(|entry| entry.parent)
            .filter(|parent| *parent != Self::NO_PARENT)
    }

    /// The index of a name.
    pub fn find(&self, text: &str) -> Option<u8> {
        let index = self
            .entries
            .iter()
            .position(|entry| self.texts.get(entry.range()) == Some(text.as_bytes()))?;
        u8::try_from(index).ok()
    }

    /// The index of a name, which is added if it is new; `None` if there is no room
    /// or the name is longer than 255 bytes.
    pub fn find_or_add(&mut self, text: &str) -> Option<u8> {
        if let Some(name) = self.find(text) {
            return Some(name);
        }
        let name = u8::try_from(self.entries.len()).ok()?;
        self.add(text.as_bytes(), Self::NO_PARENT).then_some(name)
    }

    /// Adds a name as it was read, without looking whether it is new or UTF-8: a
    /// record is read for every request. False if there is no room.
    pub fn add(&mut self, text: &[u8], parent: u8) -> bool {
        let (Ok(start), Ok(length)) = (u32::try_from(self.texts.len()), u8::try_from(text.len()))
        else {
            return false;
        };
        if self.entries.len() >= Self::MOST {
            return false;
        }
        self.entries.push(Entry {
            start,
            length,
            parent,
        });
        self.texts.extend_from_slice(text);
        true
    }

    /// The bytes of a name; empty for an index that is none.
    pub fn bytes(&self, name: u8) -> &[u8] {
        self.entries
            .get(usize::from(name))
            .and_then(|entry| self.texts.get(entry.range()))
            .unwrap_or_default()
    }

    /// Replaces the hierarchy by pairs of child and parent.
    pub fn set_parents(&mut self, parents: &[(u8, u8)]) {
        for entry in &mut self.entries {
            entry.parent = Self::NO_PARENT;
        }
        for (child, parent) in parents {
            if child != parent
                && let Some(entry) = self.entries.get_mut(usize::from(*child))
            {
                entry.parent = *parent;
            }
        }
    }

    /// The set of a name and all its ancestors. A cycle, which only a corrupt value
    /// can hold, ends where it closes.
    pub fn with_ancestors(&self, name: u8) -> u64 {
        let mut set = 0;
        let mut next = Some(name);
        while let Some(name) = next {
            let bit = Self::bit(name);
            if set & bit != 0 {
                break;
            }
            set |= bit;
            next = self.parent(name);
        }
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    #[test]
    fn a_name_has_one_place() {
        let mut names = Names::default();
        let hits = names.find_or_add("hits").unwrap();
        let orders = names.find_or_add("orders").unwrap();
        assert_eq!(names.find_or_add("hits"), Some(hits));
        assert_eq!(names.find("orders"), Some(orders));
        assert_eq!(names.text(orders), "orders");
        assert_eq!(names.text(9), "");
    }

    #[test]
    fn ancestors_are_followed_to_the_root_and_cycles_end() {
        let mut names = Names::default();
        let [a, b, c] = ["a", "b", "c"].map(|text| names.find_or_add(text).unwrap());
        names.set_parents(&[(c, b), (b, a)]);
        assert_eq!(names.with_ancestors(c), 0b111);
        assert_eq!(names.with_ancestors(a), 0b001);
        names.set_parents(&[(c, b), (b, c)]);
        assert_eq!(names.with_ancestors(c), 0b110);
    }

    #[test]
    fn the_sixty_fifth_name_is_refused() {
        let mut names = Names::default();
        for index in 0..Names::MOST {
            assert!(names.find_or_add(&format!("m{index}")).is_some());
        }
        assert_eq!(names.find_or_add("one more"), None);
        assert!(names.find_or_add("m63").is_some());
    }
}
