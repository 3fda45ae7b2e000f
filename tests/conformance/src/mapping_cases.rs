//! A table of mapping rules and requests, held against [`tollgate::mapping`].
//!
//! Apart from the room's own tests, which know their one table: here any table of the
//! same shape can be checked, with whatever is in it.

use std::collections::BTreeMap;

use tollgate::mapping::{Metrics, Rule, Rules, Usage};

/// The columns that are read, by the names in the table's first line.
const COLUMNS: [&str; 6] = [
    "rule_method",
    "pattern",
    "querystring_parameters",
    "method",
    "target",
    "expected",
];

/// What became of a table.
#[derive(Debug, Default)]
pub struct Checked {
    /// How many rows it has.
    pub rows: usize,
    /// The rows that came out otherwise.
    pub differences: Vec<Difference>,
}

/// A row that came out otherwise than expected.
#[derive(Debug, PartialEq, Eq)]
pub struct Difference {
    /// The number of its line, from 1.
    pub line: usize,
    /// The row, as it stands in the table.
    pub row: String,
    /// What is expected.
    pub expected: String,
    /// What came out: `match`, `nomatch`, or `refused` and why there can be no such rule.
    pub outcome: String,
}

/// Why a table cannot be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// The first line does not name this column.
    #[error("line 1: no column {0}")]
    Column(&'static str),
    /// The row has fewer columns than the first line names.
    #[error("line {0}: too few columns")]
    Short(usize),
    /// The constraints on the query are no JSON object of strings.
    #[error("line {line}: querystring_parameters: {problem}")]
    Parameters {
        /// The line's number.
        line: usize,
        /// What the parser says.
        problem: String,
    },
}

/// Checks every row of a table of tab-separated columns, named in the first line. Read are
/// `rule_method`, `pattern`, `querystring_parameters`, `method`, `target` and `expected`.
/// Each row is a rule by itself. Without `querystring_parameters`, which are a JSON object,
/// a rule has no constraint on the query.
///
/// # Errors
/// The table cannot be read.
pub fn check(table: &str) -> Result<Checked, TableError> {
    let mut lines = (1..).zip(table.lines());
    let names: Vec<_> = lines
        .next()
        .map(|(_, names)| names.split('\t').collect())
        .unwrap_or_default();
    let mut places = [0; COLUMNS.len()];
    for (place, column) in places.iter_mut().zip(COLUMNS) {
        *place = names
            .iter()
            .position(|name| *name == column)
            .ok_or(TableError::Column(column))?;
    }
    let mut checked = Checked::default();
    for (line, row) in lines.filter(|(_, row)| !row.is_empty()) {
        let cells: Vec<_> = row.split('\t').collect();
        let mut read = [""; COLUMNS.len()];
        for (cell, place) in read.iter_mut().zip(places) {
            *cell = cells.get(place).ok_or(TableError::Short(line))?;
        }
        let [rule_method, pattern, parameters, method, target, expected] = read;
        let parameters: BTreeMap<String, String> = match parameters {
            "" => BTreeMap::new(),
            json => serde_json::from_str(json).map_err(|error| TableError::Parameters {
                line,
                problem: error.to_string(),
            })?,
        };
        let parameters: Vec<_> = parameters.into_iter().collect();
        let outcome = outcome(rule_method, pattern, &parameters, method, target);
        checked.rows += 1;
        if outcome != expected {
            checked.differences.push(Difference {
                line,
                row: row.to_owned(),
                expected: expected.to_owned(),
                outcome,
            });
        }
    }
    Ok(checked)
}

fn outcome(
    rule_method: &str,
    pattern: &str,
    parameters: &[(String, String)],
    method: &str,
    target: &str,
) -> String {
    let metrics = Metrics::new([("hits".to_owned(), None)]).unwrap_or_default();
    let usage = metrics.ids().map(|metric| (metric, 1)).collect();
    match Rule::new(rule_method, pattern, Some(parameters), usage, false) {
        Ok(rule) => {
            let rules = Rules::compile(vec![rule]);
            let matches = rules.matching(method.as_bytes(), target.as_bytes(), &mut Usage::new());
            if matches { "match" } else { "nomatch" }.to_owned()
        }
        Err(why) => format!("refused: {why}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str =
        "source\texpected\trule_method\tpattern\tquerystring_parameters\tmethod\ttarget\n";

    fn check_rows(rows: &str) -> Result<Checked, TableError> {
        check(&format!("{HEAD}{rows}"))
    }

    #[test]
    fn every_row_of_the_repositorys_table_comes_out_as_expected() {
        let checked = check(include_str!("../../data/mapping-rules.tsv")).unwrap();
        assert_eq!(checked.rows, 90);
        assert_eq!(checked.differences, []);
    }

    #[test]
    fn a_row_that_comes_out_otherwise_is_told_with_its_line() {
        let rows = "s\tmatch\tGET\t/a\t\tGET\t/a\ns\tmatch\tGET\t/a\t\tGET\t/b\n";
        let checked = check_rows(rows).unwrap();
        assert_eq!(checked.rows, 2);
        let [difference] = &checked.differences[..] else {
            panic!("{checked:?}");
        };
        assert_eq!(difference.line, 3);
        assert_eq!(difference.outcome, "nomatch");
        assert_eq!(difference.row, "s\tmatch\tGET\t/a\t\tGET\t/b");
    }

    #[test]
    fn an_empty_column_is_no_constraint_and_hides_the_patterns_own() {
        let rows = "s\tmatch\tGET\t/a?k=1\t\tGET\t/a\n\
                    s\tnomatch\tGET\t/a\t{\"k\": \"1\"}\tGET\t/a\n";
        assert_eq!(check_rows(rows).unwrap().differences, []);
    }

    #[test]
    fn a_rule_that_cannot_be_is_a_difference_and_no_error() {
        let checked = check_rows("s\tmatch\tGET\ta\t\tGET\t/a\n").unwrap();
        assert!(checked.differences[0].outcome.starts_with("refused: "));
    }

    #[test]
    fn what_is_no_table_is_told() {
        assert_eq!(check("").unwrap_err(), TableError::Column("rule_method"));
        assert_eq!(check_rows("s\tmatch\n").unwrap_err(), TableError::Short(2));
        let error = check_rows("s\tmatch\tGET\t/a\t[1]\tGET\t/a\n").unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("line 2: querystring_parameters")
        );
    }
}
