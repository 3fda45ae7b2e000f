//! The fuzz targets over their corpora, and over inputs made from these.

use std::path::Path;

use tollgate_fuzz::TARGETS;

/// Inputs that are made for each target.
const MADE: u64 = 400;
/// The longest of them: about what libFuzzer makes.
const LONGEST: usize = 4_096;

/// Random numbers that are the same in each run (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        usize::try_from(mixed % u64::try_from(bound.max(1)).unwrap()).unwrap()
    }

    fn byte(&mut self) -> u8 {
        u8::try_from(self.below(256)).unwrap()
    }
}

/// The corpus of a target, in the order of names.
fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target);
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files
        .iter()
        .map(|file| std::fs::read(file).unwrap())
        .collect()
}

/// One input made of others: bytes changed, left out, put in, taken over from another.
fn made(corpus: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut input = corpus[random.below(corpus.len())].clone();
    for _ in 0..=random.below(8) {
        let at = random.below(input.len() + 1);
        match random.below(5) {
            0 => input.truncate(at),
            1 => {
                let other = &corpus[random.below(corpus.len())];
                let from = random.below(other.len() + 1);
                let until = from + random.below(other.len() - from + 1);
                input.splice(at..at, other[from..until].iter().copied());
            }
            2 => input.insert(at, random.byte()),
            _ => {
                if let Some(byte) = input.get_mut(at) {
                    *byte = match random.below(3) {
                        0 => byte.wrapping_add(1),
                        1 => *byte ^ (1 << random.below(8)),
                        _ => random.byte(),
                    };
                }
            }
        }
    }
    input.truncate(LONGEST);
    input
}

#[track_caller]
fn replay(name: &str) {
    let (_, target) = TARGETS.iter().find(|(target, _)| *target == name).unwrap();
    let corpus = corpus(name);
    assert!(corpus.len() > 10, "a corpus of {}", corpus.len());
    let mut random = Random(0x5eed);
    let made = (0..MADE).map(|_| made(&corpus, &mut random));
    for input in corpus.iter().cloned().chain(made.collect::<Vec<_>>()) {
        // An abort of the whole process leaves nothing else behind.
        let shown = Shown(&input);
        target(&input);
        drop(shown);
    }
}

/// Prints the input if it was the last.
struct Shown<'a>(&'a [u8]);

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the input: b\"{}\"", self.0.escape_ascii());
        }
    }
}

#[test]
fn any_bytes_are_a_configuration_or_an_error_without_secrets() {
    replay("configuration");
}

#[test]
fn any_bytes_have_a_usable_credential_or_none() {
    replay("credentials");
}

#[test]
fn any_story_leaves_the_filter_standing() {
    replay("host");
}

#[test]
fn any_set_of_keys_is_bounded_and_any_document_leads_to_its_issuer() {
    replay("keys");
}

#[test]
fn any_path_is_priced_as_by_trying_each_rule() {
    replay("mapping");
}

#[test]
fn any_record_is_read_as_it_was_written_or_not_at_all() {
    replay("record");
}

#[test]
fn any_reply_is_understood_or_not() {
    replay("replies");
}

#[test]
fn any_token_is_signed_or_refused() {
    replay("tokens");
}

#[test]
fn every_target_has_a_test_and_a_program() {
    let mine = include_str!("corpus.rs");
    for (name, _) in TARGETS {
        assert!(mine.contains(&format!("replay(\"{name}\")")), "{name}");
        let program =
            Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("libfuzzer/targets/{name}.rs"));
        assert!(program.is_file(), "{}", program.display());
    }
}
