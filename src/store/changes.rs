//! Plans what each write of a store does. Pure.
//!
//! A [`Change`] builds its transaction from what it knows of its keys. The first plan knows nothing and guesses, so
//! that the likely case takes one round trip. If the guess was wrong, the response to the refused transaction contains
//! what the keys hold, and the next plan is based on that. [`super::slots`] ensures that a change is applied only once.

use super::values::{Held, Known, Place, argument, number, number_for, total};
use crate::{
    backend::{Compare, KeyValue, LeaseId, Operation},
    error::{Error, Result},
};

/// The conditions and operations of one attempt, without those that ensure that it is applied once.
#[derive(Clone, Debug, Default)]
pub(super) struct Step {
    pub(super) when: Vec<Compare>,
    pub(super) then: Vec<Operation>,
}

/// The next step.
#[derive(Debug)]
pub(super) enum Plan<T> {
    /// Write this.
    Write(Step),
    /// There is nothing to write. This is the result.
    Done(T),
    /// The change is not possible.
    Refuse(Error),
}

impl<T> Plan<T> {
    fn write(when: Vec<Compare>, then: Vec<Operation>) -> Self {
        Self::Write(Step { when, then })
    }
}

impl<T> From<Error> for Plan<T> {
    fn from(error: Error) -> Self {
        Self::Refuse(error)
    }
}

/// What was read of a change that was applied.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    /// What [`Change::result_key`] held after the change.
    pub(super) result: Option<KeyValue>,
}

/// A write.
pub(super) trait Change: Sync {
    /// The type of the result.
    type Output: Send;

    /// The keys to read if a plan is refused. [`Self::plan`] receives what they held.
    fn reads(&self) -> Vec<Vec<u8>>;

    /// Plans the next attempt. `known` is what these keys held a moment ago, and `None` for the first attempt.
    fn plan(&self, known: Option<&Known>, lease: LeaseId) -> Plan<Self::Output>;

    /// The key that contains the result at the revision of the write. `None` if the result follows from the write
    /// itself.
    fn result_key(&self) -> Option<Vec<u8>> {
        None
    }

    /// Returns the result of a plan that was applied.
    fn applied(&self, seen: &Seen) -> Result<Self::Output>;
}

/// Puts contents, whatever the keys held.
#[derive(Clone, Debug)]
pub(super) struct Set {
    pub(super) items: Vec<(Place, Vec<u8>)>,
}

impl Change for Set {
    type Output = ();

    fn reads(&self) -> Vec<Vec<u8>> {
        Vec::new()
    }

    fn plan(&self, _: Option<&Known>, lease: LeaseId) -> Plan<()> {
        let operations = self.items.iter().flat_map(|(place, value)| replace(place, value.clone(), lease));
        Plan::write(Vec::new(), operations.collect())
    }

    fn applied(&self, _: &Seen) -> Result<()> {
        Ok(())
    }
}

/// Puts a content and deletes the counter.
fn replace(place: &Place, value: Vec<u8>, lease: LeaseId) -> [Operation; 2] {
    [Operation::put(place.content(), value, lease), Operation::delete(place.counter())]
}

/// The conditions that a key holds nothing.
fn absent(place: &Place) -> Vec<Compare> {
    vec![Compare::absent(place.content()), Compare::absent(place.counter())]
}

/// The condition that a key still holds this item.
fn unchanged(item: &KeyValue) -> Vec<Compare> {
    vec![Compare::ModRevision(item.key.clone(), item.mod_revision)]
}

/// Adds to a counter.
#[derive(Clone, Debug)]
pub(super) struct Add {
    pub(super) place: Place,
    pub(super) amount: i64,
    /// A key to put along with it, which marks the node as having entered its exit barrier.
    pub(super) finished: Option<String>,
    /// Whether this node has claimed the counter. The claim ends with this change.
    pub(super) claimed: bool,
}

impl Add {
    fn write(&self, mut when: Vec<Compare>, mut then: Vec<Operation>, lease: LeaseId) -> Plan<i64> {
        if self.claimed {
            then.push(Operation::delete(self.place.claim()));
        } else {
            when.push(Compare::absent(self.place.claim()));
        }
        if let Some(finished) = &self.finished {
            then.push(Operation::put(finished.as_str(), "", lease));
        }
        Plan::write(when, then)
    }

    fn sum(&self, present: i64) -> Result<i64> {
        present.checked_add(self.amount).ok_or_else(|| self.overflow(present))
    }

    fn overflow(&self, present: i64) -> Error {
        let Self { place, amount, .. } = self;
        argument(format!("`add` of {amount} to {present} exceeds 64 bits: {}", place.name))
    }
}

impl Change for Add {
    type Output = i64;

    fn reads(&self) -> Vec<Vec<u8>> {
        self.place.keys()
    }

    fn plan(&self, known: Option<&Known>, lease: LeaseId) -> Plan<i64> {
        let counter = self.place.counter();
        let put = |number: i64| Operation::put(counter.clone(), number.to_string(), lease);
        let touch = || {
            let then = vec![Operation::Touch { key: counter.clone() }];
            self.write(vec![Compare::Exists(counter.clone())], then, lease)
        };
        let held = match known {
            // Of N nodes that each add one, the first creates the counter, and the other N - 1 find it.
            None if self.amount == 1 => return touch(),
            None => Held::default(),
            Some(known) => Held::read(&self.place, known),
        };
        let Held { content, counter: present } = held;
        match (content, present) {
            (None, None) => self.write(absent(&self.place), vec![put(self.amount)], lease),
            (None, Some(item)) => {
                let present = match total(&item) {
                    Ok(total) => total,
                    Err(error) => return error.into(),
                };
                let sum = match self.sum(present) {
                    Ok(sum) => sum,
                    Err(error) => return error.into(),
                };
                match (self.amount, &self.finished) {
                    (0, None) => Plan::Done(sum),
                    (1, _) => touch(),
                    _ => match number_for(sum, item.version) {
                        Some(number) => self.write(unchanged(&item), vec![put(number)], lease),
                        None => self.overflow(present).into(),
                    },
                }
            }
            (Some(item), _) => {
                match number(&self.place.name, &item.value).and_then(|number| self.sum(number)) {
                    Ok(sum) => {
                        let mut when = unchanged(&item);
                        when.push(Compare::absent(counter.clone()));
                        self.write(when, vec![put(sum), Operation::delete(item.key)], lease)
                    }
                    Err(error) => error.into(),
                }
            }
        }
    }

    fn result_key(&self) -> Option<Vec<u8>> {
        Some(self.place.counter())
    }

    fn applied(&self, seen: &Seen) -> Result<i64> {
        let key = || String::from_utf8_lossy(&self.place.counter()).into_owned();
        let counter = seen.result.as_ref();
        let counter =
            counter.ok_or_else(|| Error::Record { key: key(), why: "it is not there".to_owned() })?;
        total(counter)
    }
}

/// Claims a counter, so that the writes of other nodes do not overtake the addition of another amount than one
/// repeatedly.
#[derive(Clone, Debug)]
pub(super) struct Claim {
    pub(super) place: Place,
    /// A short lease, so that a node that dies does not keep the claim.
    pub(super) lease: LeaseId,
}

impl Change for Claim {
    type Output = ();

    fn reads(&self) -> Vec<Vec<u8>> {
        Vec::new()
    }

    fn plan(&self, _: Option<&Known>, _: LeaseId) -> Plan<()> {
        let claim = self.place.claim();
        Plan::write(vec![Compare::absent(claim.clone())], vec![Operation::put(claim, "", self.lease)])
    }

    fn applied(&self, _: &Seen) -> Result<()> {
        Ok(())
    }
}

/// Puts a content if the key holds another one.
#[derive(Clone, Debug)]
pub(super) struct CompareSet {
    pub(super) place: Place,
    pub(super) expected: Vec<u8>,
    pub(super) desired: Vec<u8>,
}

impl Change for CompareSet {
    /// Whether the change put the content, and what the key holds afterwards.
    type Output = (bool, Vec<u8>);

    fn reads(&self) -> Vec<Vec<u8>> {
        self.place.keys()
    }

    fn plan(&self, known: Option<&Known>, lease: LeaseId) -> Plan<(bool, Vec<u8>)> {
        let then = || replace(&self.place, self.desired.clone(), lease).to_vec();
        let Some(known) = known else {
            let when = if self.expected.is_empty() {
                absent(&self.place)
            } else {
                vec![Compare::Value(self.place.content(), self.expected.clone())]
            };
            return Plan::write(when, then());
        };
        let held = Held::read(&self.place, known);
        match held.value() {
            Ok(None) if self.expected.is_empty() => Plan::write(absent(&self.place), then()),
            Ok(None) => Plan::Done((false, self.expected.clone())),
            Ok(Some(value)) if value == self.expected => {
                let item = held.content.or(held.counter);
                Plan::write(item.as_ref().map(unchanged).unwrap_or_default(), then())
            }
            Ok(Some(value)) => Plan::Done((false, value)),
            Err(error) => error.into(),
        }
    }

    fn applied(&self, _: &Seen) -> Result<(bool, Vec<u8>)> {
        Ok((true, self.desired.clone()))
    }
}

/// Appends to a content.
#[derive(Clone, Debug)]
pub(super) struct Append {
    pub(super) place: Place,
    pub(super) value: Vec<u8>,
}

impl Change for Append {
    type Output = ();

    fn reads(&self) -> Vec<Vec<u8>> {
        self.place.keys()
    }

    fn plan(&self, known: Option<&Known>, lease: LeaseId) -> Plan<()> {
        let held = known.map(|known| Held::read(&self.place, known)).unwrap_or_default();
        let mut value = match held.value() {
            Ok(value) => value.unwrap_or_default(),
            Err(error) => return error.into(),
        };
        value.extend_from_slice(&self.value);
        let item = held.content.or(held.counter);
        let when = item.as_ref().map_or_else(|| absent(&self.place), unchanged);
        Plan::write(when, replace(&self.place, value, lease).to_vec())
    }

    fn applied(&self, _: &Seen) -> Result<()> {
        Ok(())
    }
}

/// Deletes what a key holds. Returns whether it held something.
#[derive(Clone, Debug)]
pub(super) struct Delete {
    pub(super) place: Place,
}

impl Change for Delete {
    type Output = bool;

    fn reads(&self) -> Vec<Vec<u8>> {
        self.place.keys()
    }

    fn plan(&self, known: Option<&Known>, _: LeaseId) -> Plan<bool> {
        let key = match known.map(|known| Held::read(&self.place, known)) {
            None => self.place.content(),
            Some(Held { content: Some(item), .. } | Held { counter: Some(item), .. }) => item.key,
            Some(_) => return Plan::Done(false),
        };
        let then = vec![Operation::delete(self.place.content()), Operation::delete(self.place.counter())];
        Plan::write(vec![Compare::Exists(key)], then)
    }

    fn applied(&self, _: &Seen) -> Result<bool> {
        Ok(true)
    }
}

/// Puts keys that no other node writes: an item of a queue, or the mark that the node has finished.
#[derive(Clone, Debug)]
pub(super) struct Put {
    pub(super) key: String,
    pub(super) value: Vec<u8>,
}

impl Change for Put {
    type Output = ();

    fn reads(&self) -> Vec<Vec<u8>> {
        Vec::new()
    }

    fn plan(&self, _: Option<&Known>, lease: LeaseId) -> Plan<()> {
        Plan::write(Vec::new(), vec![Operation::put(self.key.as_str(), self.value.clone(), lease)])
    }

    fn applied(&self, _: &Seen) -> Result<()> {
        Ok(())
    }
}

/// Takes one item out of a queue. Returns false if another node took it first.
#[derive(Clone, Debug)]
pub(super) struct Take {
    pub(super) item: KeyValue,
}

impl Change for Take {
    type Output = bool;

    fn reads(&self) -> Vec<Vec<u8>> {
        vec![self.item.key.clone()]
    }

    fn plan(&self, known: Option<&Known>, _: LeaseId) -> Plan<bool> {
        let revision = |known: &Known| known.get(&self.item.key).map(|found| found.mod_revision);
        if known.is_some_and(|known| revision(known) != Some(self.item.mod_revision)) {
            return Plan::Done(false);
        }
        Plan::write(unchanged(&self.item), vec![Operation::delete(self.item.key.as_slice())])
    }

    fn applied(&self, _: &Seen) -> Result<bool> {
        Ok(true)
    }
}

/// Restores a content after the service lost its data, unless another node has written the key since.
#[derive(Clone, Debug)]
pub(super) struct PutBack {
    pub(super) place: Place,
    pub(super) value: Vec<u8>,
}

impl Change for PutBack {
    type Output = ();

    fn reads(&self) -> Vec<Vec<u8>> {
        self.place.keys()
    }

    fn plan(&self, known: Option<&Known>, lease: LeaseId) -> Plan<()> {
        if known.is_some_and(|known| !Held::read(&self.place, known).is_absent()) {
            return Plan::Done(());
        }
        let then = vec![Operation::put(self.place.content(), self.value.clone(), lease)];
        Plan::write(absent(&self.place), then)
    }

    fn applied(&self, _: &Seen) -> Result<()> {
        Ok(())
    }
}
