//! The metrics of one service: names, and which is whose parent.
//!
//! Apart from the rules because records, limits and reports speak of metrics too:
//! they pass around [`MetricId`]s and ask this table for names and ancestors.

use thiserror::Error;

/// A metric of one service: a place in the [`Metrics`] table that gave it out.
///
/// Means nothing to another service's table, nor to a later configuration's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MetricId(u16);

impl MetricId {
    /// The place in the table, from 0, below [`Metrics::len`].
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// Why a list of metrics is not a table.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum MetricsError {
    /// The name is empty.
    #[error("a metric has an empty name")]
    EmptyName,
    /// The name is longer than [`Metrics::MAX_NAME`] bytes.
    #[error("metric {name:?}: the name is longer than {max} bytes", max = Metrics::MAX_NAME)]
    LongName {
        /// The name.
        name: String,
    },
    /// The name has a character that no system name has.
    #[error(
        "metric {name:?}: a system name has only visible ASCII characters, no spaces and no square brackets"
    )]
    BadName {
        /// The name.
        name: String,
    },
    /// The parent is not in the list.
    #[error("metric {name:?}: its parent {parent:?} is not a known metric")]
    UnknownParent {
        /// The metric.
        name: String,
        /// The parent that it names.
        parent: String,
    },
    /// The metric was given two parents.
    #[error("metric {name:?} has two parents, {one:?} and {other:?}")]
    TwoParents {
        /// The metric.
        name: String,
        /// The parent it was given first.
        one: String,
        /// The parent it was given later.
        other: String,
    },
    /// The metric is its own ancestor.
    #[error("metric {name:?} is its own ancestor")]
    Cycle {
        /// The metric.
        name: String,
    },
    /// There are more than [`Metrics::MAX`] metrics.
    #[error(
        "metric {name:?} is one too many: a service has at most {max}, \
         because an application's record counts usage per metric and its size is bounded",
        max = Metrics::MAX
    )]
    TooMany {
        /// The first metric that has no place.
        name: String,
    },
}

/// A service's metrics.
///
/// At most [`Metrics::MAX`], in the order in which they were first named. Names
/// are unique, parents are in the table, and nobody is its own ancestor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metrics {
    entries: Vec<Entry>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    name: String,
    ancestors: Box<[MetricId]>,
}

impl Metrics {
    /// How many metrics a service may have: what a record has room to count.
    pub const MAX: usize = 64;

    /// How long a metric's name may be, in bytes.
    pub const MAX_NAME: usize = 128;

    /// The table of these metrics, each given by its name and its parent's.
    ///
    /// A metric may be given several times, by mapping rules that know nothing of
    /// its parent for instance: `None` does not contradict a parent given
    /// elsewhere. A parent may be given after its children.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong, with the metric's name.
    pub fn new(
        metrics: impl IntoIterator<Item = (String, Option<String>)>,
    ) -> Result<Self, MetricsError> {
        let mut given: Vec<(String, Option<String>)> = Vec::new();
        for (name, parent) in metrics {
            check_name(&name)?;
            let is_full = given.len() >= Self::MAX;
            match given.iter_mut().find(|(known, _)| *known == name) {
                Some((_, known_parent)) => match (known_parent.as_ref(), parent) {
                    (Some(one), Some(other)) if *one != other => {
                        return Err(MetricsError::TwoParents {
                            name,
                            one: one.clone(),
                            other,
                        });
                    }
                    (None, Some(parent)) => *known_parent = Some(parent),
                    _ => {}
                },
                None if is_full => return Err(MetricsError::TooMany { name }),
                None => given.push((name, parent)),
            }
        }

        let mut entries = Vec::with_capacity(given.len());
        for (name, _) in &given {
            entries.push(Entry {
                name: name.clone(),
                ancestors: ancestors(&given, name)?,
            });
        }
        Ok(Self { entries })
    }

    /// The metric of this name.
    #[must_use]
    pub fn id(&self, name: &str) -> Option<MetricId> {
        let place = self.entries.iter().position(|entry| entry.name == name)?;
        u16::try_from(place).ok().map(MetricId)
    }

    /// The metric's name; empty for an id that another table gave out and this one has not.
    #[must_use]
    pub fn name(&self, id: MetricId) -> &str {
        self.entries
            .get(id.index())
            .map_or("", |entry| entry.name.as_str())
    }

    /// The metric's parent, that one's parent, and so on.
    #[must_use]
    pub fn ancestors(&self, id: MetricId) -> &[MetricId] {
        self.entries
            .get(id.index())
            .map_or(&[], |entry| &entry.ancestors)
    }

    /// How many metrics there are, at most [`Metrics::MAX`].
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Every metric, in the table's order.
    pub fn ids(&self) -> impl Iterator<Item = MetricId> + use<> {
        (0..u16::try_from(self.entries.len()).unwrap_or(u16::MAX)).map(MetricId)
    }
}

fn check_name(name: &str) -> Result<(), MetricsError> {
    if name.is_empty() {
        return Err(MetricsError::EmptyName);
    }
    if name.len() > Metrics::MAX_NAME {
        return Err(MetricsError::LongName {
            name: name.to_owned(),
        });
    }
    // A square bracket would be read as nesting in a report, and cost its whole batch.
    let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'[' | b']');
    if !name.bytes().all(plain) {
        return Err(MetricsError::BadName {
            name: name.to_owned(),
        });
    }
    Ok(())
}

/// The ancestors of `name`, nearest first.
fn ancestors(
    given: &[(String, Option<String>)],
    name: &str,
) -> Result<Box<[MetricId]>, MetricsError> {
    let mut found = Vec::new();
    let mut child = name;
    let mut parent = parent_of(given, name);
    while let Some(ancestor) = parent {
        // More steps than metrics: the walk goes round in a circle, though perhaps
        // one that `name` only leads to. The one it met last is on it.
        if found.len() >= given.len() {
            return Err(MetricsError::Cycle {
                name: ancestor.to_owned(),
            });
        }
        let id = given
            .iter()
            .position(|(known, _)| known == ancestor)
            .and_then(|place| u16::try_from(place).ok())
            .map(MetricId)
            .ok_or_else(|| MetricsError::UnknownParent {
                name: child.to_owned(),
                parent: ancestor.to_owned(),
            })?;
        found.push(id);
        child = ancestor;
        parent = parent_of(given, ancestor);
    }
    Ok(found.into_boxed_slice())
}

fn parent_of<'a>(given: &'a [(String, Option<String>)], name: &str) -> Option<&'a str> {
    given
        .iter()
        .find(|(known, _)| known == name)
        .and_then(|(_, parent)| parent.as_deref())
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    fn table(metrics: &[(&str, Option<&str>)]) -> Result<Metrics, MetricsError> {
        Metrics::new(
            metrics
                .iter()
                .map(|(name, parent)| ((*name).to_owned(), parent.map(str::to_owned))),
        )
    }

    #[test]
    fn ancestors_are_listed_nearest_first() {
        let metrics = table(&[
            ("vip", Some("orders")),
            ("orders", Some("hits")),
            ("hits", None),
        ])
        .unwrap();
        let id = |name| metrics.id(name).unwrap();
        assert_eq!(metrics.ancestors(id("vip")), [id("orders"), id("hits")]);
        assert_eq!(metrics.ancestors(id("orders")), [id("hits")]);
        assert_eq!(metrics.ancestors(id("hits")), []);
    }

    #[test]
    fn ids_and_names_lead_to_each_other() {
        let metrics = table(&[("hits", None), ("ads", None)]).unwrap();
        assert_eq!(metrics.len(), 2);
        for id in metrics.ids() {
            assert_eq!(metrics.id(metrics.name(id)), Some(id));
        }
        assert_eq!(
            metrics.ids().map(MetricId::index).collect::<Vec<_>>(),
            [0, 1]
        );
        assert_eq!(metrics.id("none"), None);
    }

    #[test]
    fn an_id_of_a_larger_table_has_no_name_and_no_ancestors_here() {
        let larger = table(&[("hits", None), ("ads", Some("hits"))]).unwrap();
        let smaller = table(&[("hits", None)]).unwrap();
        let id = larger.id("ads").unwrap();
        assert_eq!(smaller.name(id), "");
        assert_eq!(smaller.ancestors(id), []);
    }

    #[test]
    fn naming_a_metric_again_without_its_parent_changes_nothing() {
        let once = table(&[("hits", None), ("orders", Some("hits"))]).unwrap();
        let before = table(&[("hits", None), ("orders", None), ("orders", Some("hits"))]).unwrap();
        let after = table(&[("hits", None), ("orders", Some("hits")), ("orders", None)]).unwrap();
        assert_eq!(before, once);
        assert_eq!(after, once);
    }

    #[test]
    fn two_parents_are_refused() {
        let error = table(&[("a", None), ("b", None), ("c", Some("a")), ("c", Some("b"))]);
        assert_eq!(
            error,
            Err(MetricsError::TwoParents {
                name: "c".into(),
                one: "a".into(),
                other: "b".into()
            })
        );
    }

    #[test]
    fn an_unknown_parent_is_refused_with_the_child_that_names_it() {
        let error = table(&[("a", Some("b")), ("b", Some("c"))]);
        assert_eq!(
            error,
            Err(MetricsError::UnknownParent {
                name: "b".into(),
                parent: "c".into()
            })
        );
    }

    #[test]
    fn a_cycle_is_refused_whatever_its_length_and_whoever_leads_to_it() {
        let cycle = |metrics| match table(metrics) {
            Err(MetricsError::Cycle { name }) => name,
            other => panic!("{other:?}"),
        };
        assert_eq!(cycle(&[("a", Some("a"))]), "a");
        assert!(["a", "b"].contains(&&*cycle(&[("a", Some("b")), ("b", Some("a"))])));
        let into = [("c", Some("a")), ("a", Some("b")), ("b", Some("a"))];
        assert!(["a", "b"].contains(&&*cycle(&into)));
    }

    #[test]
    fn only_system_names_are_names() {
        assert_eq!(table(&[("", None)]), Err(MetricsError::EmptyName));
        for name in ["a b", "a\n", "\u{7f}", "é", " a", "hits[eu]", "]"] {
            let error = Err(MetricsError::BadName { name: name.into() });
            assert_eq!(table(&[(name, None)]), error);
        }
        let longest = "x".repeat(Metrics::MAX_NAME);
        assert!(table(&[(&longest, None)]).is_ok());
        let longer = format!("{longest}x");
        assert!(matches!(
            table(&[(&longer, None)]),
            Err(MetricsError::LongName { .. })
        ));
    }

    #[test]
    fn as_many_metrics_as_a_record_can_count_and_no_more() {
        let names = |count| (0..count).map(|number| (format!("m{number}"), None));
        assert_eq!(Metrics::new(names(64)).unwrap().len(), 64);
        assert_eq!(
            Metrics::new(names(65)),
            Err(MetricsError::TooMany { name: "m64".into() })
        );
        assert!(Metrics::new(names(64).chain(names(64))).is_ok());
    }
}
