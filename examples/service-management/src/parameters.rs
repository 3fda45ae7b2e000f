//! Query strings and forms, read the way the backend's web framework reads them
//! (Rack 3.1, `query_parser.rb`).
//!
//! Apart, because that reading decides much of what a request means: nesting by
//! brackets, what a repeated name does, which malformed input is refused, and
//! with what words.

use indexmap::IndexMap;
use percent_encoding::percent_decode;
use std::borrow::Cow;

/// The parameters of a request, by name, in the order of their first mention.
pub type Parameters = IndexMap<Vec<u8>, Parameter>;

/// The value of a parameter. Text is whatever bytes were sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parameter {
    /// The name was sent without `=`.
    Missing,
    /// `name=text`
    Text(Vec<u8>),
    /// `name[]=...`
    List(Vec<Parameter>),
    /// `name[key]=...`
    Map(Parameters),
}

/// Why a query string or form was not read.
#[derive(Debug, PartialEq, Eq)]
pub enum ParseError {
    /// A limit on size, number or depth was passed; the words of the reply.
    Limit(String),
    /// A `%` without two hexadecimal digits.
    PercentEncoding,
    /// A name was used as two different kinds of value.
    Clash {
        /// What this use of the name needs.
        expected: &'static str,
        /// What an earlier use made of it.
        found: &'static str,
        /// The name.
        name: String,
    },
}

const MOST_BYTES: usize = 4_194_304;
const MOST_PARAMETERS: usize = 4_096;
const MOST_LEVELS: usize = 32;

impl Parameter {
    /// The text, if it is one; bytes that are not UTF-8 are replaced.
    #[must_use]
    pub fn text(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Text(bytes) => Some(String::from_utf8_lossy(bytes)),
            _ => None,
        }
    }

    /// The value as the backend writes it into messages (Ruby's `to_s`).
    #[must_use]
    pub fn display(&self) -> String {
        match self {
            Self::Missing => String::new(),
            Self::Text(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            nested => nested.inspect(),
        }
    }

    fn inspect(&self) -> String {
        match self {
            Self::Missing => "nil".to_owned(),
            Self::Text(bytes) => format!("{:?}", String::from_utf8_lossy(bytes)),
            Self::List(items) => {
                let items: Vec<_> = items.iter().map(Self::inspect).collect();
                format!("[{}]", items.join(", "))
            }
            Self::Map(map) => {
                let pairs: Vec<_> = map
                    .iter()
                    .map(|(name, value)| {
                        format!("{:?}=>{}", String::from_utf8_lossy(name), value.inspect())
                    })
                    .collect();
                format!("{{{}}}", pairs.join(", "))
            }
        }
    }

    const fn class(&self) -> &'static str {
        match self {
            Self::Missing => "NilClass",
            Self::Text(_) => "String",
            Self::List(_) => "Array",
            Self::Map(_) => "Hash",
        }
    }

    fn is_utf8(&self) -> bool {
        match self {
            Self::Missing => true,
            Self::Text(bytes) => std::str::from_utf8(bytes).is_ok(),
            Self::List(items) => items.iter().all(Self::is_utf8),
            Self::Map(map) => is_utf8(map),
        }
    }
}

/// Whether every name and value is UTF-8.
#[must_use]
pub fn is_utf8(parameters: &Parameters) -> bool {
    parameters
        .iter()
        .all(|(name, value)| std::str::from_utf8(name).is_ok() && value.is_utf8())
}

/// The value of a name; a name without a value counts as absent.
#[must_use]
pub fn get<'a>(parameters: &'a Parameters, name: &str) -> Option<&'a Parameter> {
    match parameters.get(name.as_bytes()) {
        None | Some(Parameter::Missing) => None,
        found => found,
    }
}

/// Reads a query string or the body of a form.
///
/// # Errors
/// When the backend would refuse it.
pub fn parse(text: &[u8]) -> Result<Parameters, ParseError> {
    let mut parameters = Parameters::new();
    if text.is_empty() {
        return Ok(parameters);
    }
    if text.len() > MOST_BYTES {
        return Err(ParseError::Limit(format!(
            "total query size exceeds limit ({MOST_BYTES})"
        )));
    }
    let count = text
        .iter()
        .filter(|byte| **byte == b'&')
        .count()
        .saturating_add(1);
    if count > MOST_PARAMETERS {
        return Err(ParseError::Limit(format!(
            "total number of query parameters ({count}) exceeds limit ({MOST_PARAMETERS})"
        )));
    }
    for pair in text.split(|byte| *byte == b'&') {
        let pair = pair.trim_ascii_start();
        let mut halves = pair.splitn(2, |byte| *byte == b'=');
        let name = unescape(halves.next().unwrap_or_default())?;
        let value = halves.next().map(unescape).transpose()?;
        let value = value.map_or(Parameter::Missing, Parameter::Text);
        insert(&mut parameters, &name, value, 0)?;
    }
    Ok(parameters)
}

/// Puts one decoded pair into the parameters, as [`parse`] does for each.
///
/// # Errors
/// When it clashes with an earlier one, or is nested too deeply.
pub fn add(parameters: &mut Parameters, name: &[u8], value: Vec<u8>) -> Result<(), ParseError> {
    insert(parameters, name, Parameter::Text(value), 0).map(|_| ())
}

fn unescape(text: &[u8]) -> Result<Vec<u8>, ParseError> {
    let mut rest = text;
    while let Some(at) = rest.iter().position(|byte| *byte == b'%') {
        match rest.get(at..) {
            Some([_, high, low, after @ ..])
                if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() =>
            {
                rest = after;
            }
            _ => return Err(ParseError::PercentEncoding),
        }
    }
    let spaced: Vec<u8> = text
        .iter()
        .map(|byte| if *byte == b'+' { b' ' } else { *byte })
        .collect();
    Ok(percent_decode(&spaced).collect())
}

/// `_normalize_params`. What comes back, if anything, replaces the map: the
/// name was `[]` below the top, which makes a list.
fn insert(
    map: &mut Parameters,
    name: &[u8],
    value: Parameter,
    depth: usize,
) -> Result<Option<Parameter>, ParseError> {
    if depth >= MOST_LEVELS {
        return Err(ParseError::Limit(
            "Rack::QueryParser::QueryLimitError".to_owned(),
        ));
    }
    let (key, after) = split_name(name, depth);
    if key.is_empty() {
        return Ok(None);
    }
    if after.is_empty() {
        if key == b"[]" && depth != 0 {
            return Ok(Some(Parameter::List(vec![value])));
        }
        map.insert(key.to_vec(), value);
    } else if after == b"[" {
        map.insert(name.to_vec(), value);
    } else if after == b"[]" {
        list_at(map, key)?.push(value);
    } else if let Some(inner) = after.strip_prefix(b"[]") {
        let child = list_child(inner);
        let list = list_at(map, key)?;
        match list.last_mut() {
            Some(Parameter::Map(last)) if !has_path(last, child) => {
                insert(last, child, value, depth + 1)?;
            }
            _ => {
                let mut fresh = Parameters::new();
                let replaced = insert(&mut fresh, child, value, depth + 1)?;
                list.push(replaced.unwrap_or(Parameter::Map(fresh)));
            }
        }
    } else {
        let slot = slot(map, key, Parameter::Map(Parameters::new()));
        let Parameter::Map(inner) = slot else {
            return Err(clash("Hash", slot, key));
        };
        if let Some(replacement) = insert(inner, after, value, depth + 1)? {
            *slot = replacement;
        }
    }
    Ok(None)
}

fn split_name(name: &[u8], depth: usize) -> (&[u8], &[u8]) {
    let position = |byte: u8| {
        let found = name.iter().skip(1).position(|other| *other == byte)?;
        found.checked_add(1)
    };
    let whole = (name, &[][..]);
    if depth == 0 {
        return position(b'[').map_or(whole, |at| name.split_at(at));
    }
    if let Some(after) = name.strip_prefix(b"[]") {
        return (b"[]", after);
    }
    if name.first() == Some(&b'[')
        && let Some(at) = position(b']')
        && let (Some(key), Some(after)) = (name.get(1..at), name.get(at + 1..))
    {
        return (key, after);
    }
    whole
}

/// The key within the maps of a list: `x[][y]` gives `y`, other forms the rest.
fn list_child(inner: &[u8]) -> &[u8] {
    match inner
        .strip_prefix(b"[")
        .and_then(|rest| rest.strip_suffix(b"]"))
    {
        Some(key) if !key.is_empty() && !key.contains(&b'[') && !key.contains(&b']') => key,
        _ => inner,
    }
}

/// `params_hash_has_key?`: whether a list's last map already has this key, so
/// that the next map of the list begins.
fn has_path(map: &Parameters, key: &[u8]) -> bool {
    if key.windows(2).any(|pair| pair == b"[]") {
        return false;
    }
    let mut here = Some(map);
    for part in key
        .split(|byte| *byte == b'[' || *byte == b']')
        .filter(|part| !part.is_empty())
    {
        match here.and_then(|map| map.get(part)) {
            Some(Parameter::Map(inner)) => here = Some(inner),
            Some(_) => here = None,
            None => return false,
        }
    }
    true
}

/// The value of this name, made if there is none.
fn slot<'a>(map: &'a mut Parameters, key: &[u8], fresh: Parameter) -> &'a mut Parameter {
    let slot = map.entry(key.to_vec()).or_insert(Parameter::Missing);
    if matches!(slot, Parameter::Missing) {
        *slot = fresh;
    }
    slot
}

fn list_at<'a>(map: &'a mut Parameters, key: &[u8]) -> Result<&'a mut Vec<Parameter>, ParseError> {
    match slot(map, key, Parameter::List(Vec::new())) {
        Parameter::List(list) => Ok(list),
        other => Err(clash("Array", other, key)),
    }
}

fn clash(expected: &'static str, found: &Parameter, key: &[u8]) -> ParseError {
    ParseError::Clash {
        expected,
        found: found.class(),
        name: String::from_utf8_lossy(key).into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        parse(text.as_bytes()).map_or_else(
            |error| format!("{error:?}"),
            |parameters| Parameter::Map(parameters).inspect(),
        )
    }

    #[test]
    fn brackets_nest_and_the_last_of_a_name_wins() {
        for (text, expected) in [
            ("a=1&b=x+y%20z", r#"{"a"=>"1", "b"=>"x y z"}"#),
            ("a=1&a=2", r#"{"a"=>"2"}"#),
            ("a&b=", r#"{"a"=>nil, "b"=>""}"#),
            ("u[h]=1&u[o]=2&u[h]=3", r#"{"u"=>{"h"=>"3", "o"=>"2"}}"#),
            ("u%5Bh%5D=1", r#"{"u"=>{"h"=>"1"}}"#),
            ("u[h][i]=1", r#"{"u"=>{"h"=>{"i"=>"1"}}}"#),
            ("a[]=1&a[]=2", r#"{"a"=>["1", "2"]}"#),
            ("a[][]=1", r#"{"a"=>[["1"]]}"#),
            (
                "t[][k]=1&t[][u]=2&t[][k]=3",
                r#"{"t"=>[{"k"=>"1", "u"=>"2"}, {"k"=>"3"}]}"#,
            ),
            (
                "t[][k]=1&t[][u][h]=2",
                r#"{"t"=>[{"k"=>"1", "u"=>{"h"=>"2"}}]}"#,
            ),
            ("a[=1", r#"{"a["=>"1"}"#),
            ("[a]=1", r#"{"[a]"=>"1"}"#),
            ("=1&&", "{}"),
            ("a=1;b=2", r#"{"a"=>"1;b=2"}"#),
        ] {
            assert_eq!(shown(text), expected, "{text}");
        }
    }

    #[test]
    fn clashing_and_malformed_input_is_refused() {
        assert_eq!(
            parse(b"u[]=1&u[h]=1"),
            Err(ParseError::Clash {
                expected: "Hash",
                found: "Array",
                name: "u".to_owned()
            })
        );
        for text in ["a=%", "a=%Z0", "%4=1", "a=100%"] {
            assert_eq!(
                parse(text.as_bytes()),
                Err(ParseError::PercentEncoding),
                "{text}"
            );
        }
        let deep = format!("a{}=1", "[b]".repeat(40));
        assert!(matches!(parse(deep.as_bytes()), Err(ParseError::Limit(_))));
        assert!(parse(format!("a{}=1", "[b]".repeat(31)).as_bytes()).is_ok());
    }

    #[test]
    fn text_that_is_not_utf8_is_kept_and_noticed() {
        for (text, valid) in [
            ("a=%C3%A9", true),
            ("a=%FF", false),
            ("%FF=a", false),
            ("u[h]=%FF", false),
            ("u[]=%FF", false),
            ("a=%FF&a=1", true),
        ] {
            assert_eq!(is_utf8(&parse(text.as_bytes()).unwrap()), valid, "{text}");
        }
    }
}
