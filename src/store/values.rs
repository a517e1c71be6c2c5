//! The layout of a store in the keys of the service, and what these keys hold. Pure.
//!
//! A key of the store is represented by two keys of the service, of which at most one exists: its content, `<key>/v`,
//! and its counter, `<key>/n`, so that `set` does not compete with `add` in a loop. The items of its queue are
//! `<key>/q/<item>`. Store keys are percent-encoded, so one prefix covers everything of a key and nothing of another
//! key. While a node restores its part of a counter after the service lost its data, there is also a claim, `<key>/c`.
//!
//! A counter holds the number that was last put into it, and every later touch counts one: `total = number + version -
//! 1`. A node can therefore add one to an existing counter without knowing its total, and N nodes that finish together
//! need N transactions instead of N squared.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::{
    backend::{Event, KeyValue, Keys},
    error::{Error, Result},
};

/// The characters that are not encoded: the unreserved characters of RFC 3986 except `.`, as in the keys of a run.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'~');

/// How many names a message shows.
const SHOWN_KEYS: usize = 3;

/// The place of one key of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The key as the caller knows it.
    pub(super) name: String,
    /// The prefix of everything that belongs to the key.
    prefix: String,
}

impl Place {
    /// The place of a key in the store whose keys begin with `base`.
    ///
    /// # Errors
    /// [`Error::Argument`] if the name is not a valid key.
    pub(super) fn new(base: &str, name: &str) -> Result<Self> {
        if name.is_empty() {
            return Err(argument("a key of the store may not be empty"));
        }
        if name.contains('\0') {
            return Err(argument(format!("a key of the store may not contain NUL: {name:?}")));
        }
        Ok(Self { name: name.to_owned(), prefix: format!("{base}{}/", utf8_percent_encode(name, ENCODED)) })
    }

    /// The key of its content.
    pub(super) fn content(&self) -> Vec<u8> {
        format!("{}v", self.prefix).into_bytes()
    }

    /// The key of its counter.
    pub(super) fn counter(&self) -> Vec<u8> {
        format!("{}n", self.prefix).into_bytes()
    }

    /// The key of the claim of a node that is about to restore its part of the counter. Until then no other node adds
    /// to it.
    pub(super) fn claim(&self) -> Vec<u8> {
        format!("{}c", self.prefix).into_bytes()
    }

    /// The prefix of the items of its queue.
    pub(super) fn queue(&self) -> String {
        format!("{}q/", self.prefix)
    }

    /// The keys whose values [`Held::read`] needs.
    pub(super) fn keys(&self) -> Vec<Vec<u8>> {
        vec![self.content(), self.counter()]
    }
}

/// The name of the store key that has this content or counter. `None` for the items of queues.
pub(super) fn name_of(base: &str, key: &[u8]) -> Option<String> {
    let rest = std::str::from_utf8(key).ok()?.strip_prefix(base)?;
    let encoded = rest.strip_suffix("/v").or_else(|| rest.strip_suffix("/n"))?;
    if encoded.contains('/') {
        return None;
    }
    percent_decode_str(encoded).decode_utf8().ok().map(Cow::into_owned)
}

/// What some keys of the service held when they were read. Absent keys are not in it.
pub(super) type Known = BTreeMap<Vec<u8>, KeyValue>;

/// What a key holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Held {
    /// Its content.
    pub(super) content: Option<KeyValue>,
    /// Its counter.
    pub(super) counter: Option<KeyValue>,
}

impl Held {
    /// What the key of a place holds, from what is known of its service keys ([`Place::keys`]).
    pub(super) fn read(place: &Place, known: &Known) -> Self {
        Self { content: known.get(&place.content()).cloned(), counter: known.get(&place.counter()).cloned() }
    }

    /// Whether the key holds nothing.
    pub(super) fn is_absent(&self) -> bool {
        self.content.is_none() && self.counter.is_none()
    }

    /// The value that `get` returns. For a counter it is the total in decimal.
    ///
    /// # Errors
    /// [`Error::Record`] if a counter is not valid.
    pub(super) fn value(&self) -> Result<Option<Vec<u8>>> {
        match (&self.content, &self.counter) {
            (Some(content), _) => Ok(Some(content.value.clone())),
            (None, Some(counter)) => Ok(Some(total(counter)?.to_string().into_bytes())),
            (None, None) => Ok(None),
        }
    }
}

/// The total of a counter.
///
/// # Errors
/// [`Error::Record`] if it is not a valid counter.
pub(super) fn total(counter: &KeyValue) -> Result<i64> {
    let number = std::str::from_utf8(&counter.value).ok().and_then(|text| text.parse::<i64>().ok());
    number.and_then(|number| number.checked_add(counter.version - 1)).ok_or_else(|| Error::Record {
        key: String::from_utf8_lossy(&counter.key).into_owned(),
        why: format!("expected a counter, not {} bytes that are no number", counter.value.len()),
    })
}

/// The number to put into a counter that is at `version` now, so that its total is `total` after that put.
pub(super) fn number_for(total: i64, version: i64) -> Option<i64> {
    total.checked_sub(version)
}

/// A content as a number, which `add` turns into a counter.
///
/// # Errors
/// [`Error::Argument`] if it is not a number.
pub(super) fn number(name: &str, content: &[u8]) -> Result<i64> {
    std::str::from_utf8(content).ok().and_then(|text| text.trim().parse().ok()).ok_or_else(|| {
        argument(format!(
            "`add` expects a key that is absent, a counter, or a decimal number of 64 bits; it holds {} bytes that \
             are none: {name}",
            content.len()
        ))
    })
}

/// Returns an [`Error::Argument`].
pub(super) fn argument(message: impl Into<String>) -> Error {
    Error::Argument { message: message.into() }
}

/// The keys that a call is about, and what is known of them.
#[derive(Clone, Debug)]
pub(super) struct Contents {
    places: Vec<Place>,
    /// For a key of the service, its place and whether it is the counter.
    index: BTreeMap<Vec<u8>, (usize, bool)>,
    held: Vec<Held>,
    /// The keys of the items in the queues, by place, and each place by the prefix of its queue. Empty if queues do not
    /// count.
    queued: Vec<BTreeSet<Vec<u8>>>,
    queues: BTreeMap<Vec<u8>, usize>,
    /// How many of them hold nothing. Counted, because it is read after each change, and rank 0 sees one change for
    /// each of N nodes.
    absent: usize,
}

impl Contents {
    /// These keys, of which nothing is known yet. A key that is named twice counts once.
    pub(super) fn new(mut places: Vec<Place>) -> Self {
        places.sort_by(|one, other| one.prefix.cmp(&other.prefix));
        places.dedup();
        let mut index = BTreeMap::new();
        for (number, place) in places.iter().enumerate() {
            index.insert(place.content(), (number, false));
            index.insert(place.counter(), (number, true));
        }
        let absent = places.len();
        let held = vec![Held::default(); absent];
        Self { places, index, held, queued: vec![BTreeSet::new(); absent], queues: BTreeMap::new(), absent }
    }

    /// As [`Self::new`], but a key with items in its queue counts as a key that holds something.
    pub(super) fn with_queues(places: Vec<Place>) -> Self {
        let contents = Self::new(places);
        let queues =
            contents.places.iter().zip(0..).map(|(place, number)| (place.queue().into_bytes(), number));
        Self { queues: queues.collect(), ..contents }
    }

    /// The queues that must be read, because their keys hold nothing else.
    pub(super) fn unread_queues(&self) -> Vec<Keys> {
        let absent = |number: &usize| self.is_absent(*number);
        self.queues
            .iter()
            .filter(|(_, number)| absent(number))
            .map(|(queue, _)| Keys::prefix(queue.clone()))
            .collect()
    }

    fn is_absent(&self, number: usize) -> bool {
        self.held.get(number).is_none_or(Held::is_absent)
            && self.queued.get(number).is_none_or(BTreeSet::is_empty)
    }

    /// The keys.
    pub(super) fn places(&self) -> &[Place] {
        &self.places
    }

    /// The longest prefix that covers all of them, for one range or one watch.
    pub(super) fn covering(&self) -> Keys {
        let (Some(first), Some(last)) = (self.places.first(), self.places.last()) else {
            return Keys::prefix("");
        };
        // The keys are sorted, so a prefix that the first and the last have in common is common to all.
        let common =
            first.prefix.bytes().zip(last.prefix.bytes()).take_while(|(one, other)| one == other).count();
        Keys::prefix(&first.prefix.as_bytes()[..common])
    }

    /// Forgets what is known, before everything is read again.
    pub(super) fn clear(&mut self) {
        self.held.fill(Held::default());
        self.queued.fill(BTreeSet::new());
        self.absent = self.held.len();
    }

    /// Adds what a read found.
    pub(super) fn found(&mut self, item: KeyValue) {
        if let Some((number, counter)) = self.index.get(&item.key).copied() {
            self.put(number, counter, Some(item));
        } else if let Some(number) = self.queue_of(&item.key) {
            self.update(number, |_, queued| {
                queued.insert(item.key);
            });
        }
    }

    /// Applies a change.
    pub(super) fn apply(&mut self, event: Event) {
        match event {
            Event::Put(item) => self.found(item),
            Event::Delete { key, .. } => {
                if let Some((number, counter)) = self.index.get(&key).copied() {
                    self.put(number, counter, None);
                } else if let Some(number) = self.queue_of(&key) {
                    self.update(number, |_, queued| {
                        queued.remove(&key);
                    });
                }
            }
        }
    }

    fn put(&mut self, number: usize, counter: bool, item: Option<KeyValue>) {
        self.update(number, |held, _| *(if counter { &mut held.counter } else { &mut held.content }) = item);
    }

    fn queue_of(&self, key: &[u8]) -> Option<usize> {
        let end = key.iter().rposition(|byte| *byte == b'/')?;
        self.queues.get(key.get(..=end)?).copied()
    }

    fn update(&mut self, number: usize, change: impl FnOnce(&mut Held, &mut BTreeSet<Vec<u8>>)) {
        self.absent -= usize::from(self.is_absent(number));
        if let (Some(held), Some(queued)) = (self.held.get_mut(number), self.queued.get_mut(number)) {
            change(held, queued);
        }
        self.absent += usize::from(self.is_absent(number));
    }

    /// Whether all of them hold something.
    pub(super) fn is_complete(&self) -> bool {
        self.absent == 0
    }

    /// What the key of this name holds.
    pub(super) fn value(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let found = self.places.iter().zip(&self.held).find(|(place, _)| place.name == name);
        found.map_or(Ok(None), |(_, held)| held.value())
    }

    /// What all the keys hold, by name.
    pub(super) fn values(&self) -> Result<BTreeMap<&str, Option<Vec<u8>>>> {
        let pairs = self.places.iter().zip(&self.held);
        pairs.map(|(place, held)| Ok((place.name.as_str(), held.value()?))).collect()
    }

    /// A message about the missing keys: their number, and the first names.
    pub(super) fn missing(&self) -> String {
        let missing = self.places.iter().zip(0..).filter(|(_, number)| self.is_absent(*number));
        let names: Vec<_> = missing.take(SHOWN_KEYS).map(|(place, _)| format!("`{}`", place.name)).collect();
        let rest = if self.absent > SHOWN_KEYS { ", ..." } else { "" };
        format!("{} of {} keys missing: {}{rest}", self.absent, self.places.len(), names.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        backend::Operation,
        store::changes::{Add, Change, Plan},
    };

    const BASE: &str = "/base/";

    fn place(name: &str) -> Place {
        Place::new(BASE, name).unwrap()
    }

    fn item(key: Vec<u8>, value: &str, version: i64) -> KeyValue {
        KeyValue { key, value: value.into(), version, mod_revision: version, ..KeyValue::default() }
    }

    /// Carries out the operations of a plan on one key, as the service does.
    fn carry_out(held: &mut Held, place: &Place, operations: &[Operation]) {
        for operation in operations {
            match operation {
                Operation::Put { key, value, .. } => {
                    let slot = if *key == place.counter() { &mut held.counter } else { &mut held.content };
                    let version = slot.as_ref().map_or(0, |item| item.version) + 1;
                    *slot = Some(item(key.clone(), std::str::from_utf8(value).unwrap(), version));
                }
                Operation::Touch { key } => {
                    assert_eq!(*key, place.counter());
                    held.counter.as_mut().unwrap().version += 1;
                }
                Operation::Delete(Keys::One(key)) if *key == place.content() => held.content = None,
                Operation::Delete(_) => held.counter = None,
                Operation::Get(_) => {}
            }
        }
    }

    proptest! {
        #[test]
        fn counter_is_the_sum_of_what_was_added(
            start in proptest::option::of(-1000_i64..1000),
            amounts in proptest::collection::vec(prop_oneof![3 => Just(1_i64), 1 => -1000_i64..1000], 1..60),
        ) {
            let place = place("counter");
            let mut held = Held::default();
            if let Some(start) = start {
                held.content = Some(item(place.content(), &start.to_string(), 1));
            }
            let mut sum = start.unwrap_or(0);
            for amount in amounts {
                sum += amount;
                let add = Add { place: place.clone(), amount, finished: None, claimed: false };
                let items = [held.content.clone(), held.counter.clone()].into_iter().flatten();
                let known = items.map(|item| (item.key.clone(), item)).collect();
                match add.plan(Some(&known), 7) {
                    Plan::Write(step) => carry_out(&mut held, &place, &step.then),
                    Plan::Done(total) => prop_assert_eq!(total, sum),
                    Plan::Refuse(error) => prop_assert!(false, "{}", error),
                }
                prop_assert!(held.content.is_none());
                prop_assert_eq!(held.value().unwrap(), Some(sum.to_string().into_bytes()));
            }
        }

        #[test]
        fn every_name_is_restored_from_its_key_and_none_lies_within_another(one in "\\PC{1,8}", other in "\\PC{1,8}") {
            let (first, second) = (place(&one), place(&other));
            prop_assert_eq!(name_of(BASE, &first.content()), Some(one.clone()));
            prop_assert_eq!(name_of(BASE, &first.counter()), Some(one.clone()));
            prop_assert_eq!(name_of(BASE, format!("{}item/v", first.queue()).as_bytes()), None);
            if one != other {
                prop_assert!(!first.prefix.starts_with(&second.prefix));
            }
        }

        #[test]
        fn one_prefix_covers_all_keys(names in proptest::collection::vec("[ab/%]{1,6}", 1..8)) {
            let contents = Contents::new(names.iter().map(|name| place(name)).collect());
            let Keys::Prefix(prefix) = contents.covering() else { panic!("no prefix") };
            prop_assert!(prefix.starts_with(BASE.as_bytes()));
            for place in contents.places() {
                prop_assert!(place.content().starts_with(&prefix) && place.counter().starts_with(&prefix));
            }
        }
    }

    #[test]
    fn what_is_no_key_is_refused() {
        for name in ["", "a\0b"] {
            assert!(matches!(Place::new(BASE, name), Err(Error::Argument { .. })), "{name:?}");
        }
    }

    #[test]
    fn changes_move_a_key_from_counter_to_content_and_away() {
        let mut contents = Contents::new(vec![place("b"), place("a"), place("a")]);
        assert_eq!(contents.missing(), "2 of 2 keys missing: `a`, `b`");
        contents.found(item(place("a").counter(), "5", 3));
        assert_eq!(contents.value("a").unwrap(), Some(b"7".to_vec()));
        contents.apply(Event::Put(item(place("a").content(), "text", 1)));
        contents.apply(Event::Delete { key: place("a").counter(), revision: 4 });
        assert_eq!(contents.value("a").unwrap(), Some(b"text".to_vec()));
        assert!(!contents.is_complete());
        assert_eq!(contents.missing(), "1 of 2 keys missing: `b`");
        contents.apply(Event::Put(item(place("b").content(), "", 1)));
        contents.apply(Event::Put(item(b"/base/c/v".to_vec(), "", 1)));
        assert!(contents.is_complete());
        contents.apply(Event::Delete { key: place("a").content(), revision: 5 });
        assert_eq!(contents.values().unwrap(), BTreeMap::from([("a", None), ("b", Some(Vec::new()))]));
    }

    #[test]
    fn what_is_no_number_is_not_added_to_and_not_shown() {
        let message = number("key", b"secret").unwrap_err().to_string();
        assert!(
            message.contains("6 bytes") && message.contains("key") && !message.contains("secret"),
            "{message}"
        );
        assert_eq!(number("key", b"-12").unwrap(), -12);
    }
}
