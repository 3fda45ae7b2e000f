//! Reading the backend's XML: elements, attributes and text, within bounds, and nothing
//! else that XML has.
//!
//! Apart from [`super::status`] so that what a document means is not mixed with how it is
//! walked. The parsing itself is `quick-xml`'s.

use std::borrow::Cow;

use quick_xml::escape::resolve_xml_entity;
use quick_xml::events::{BytesStart, Event};
use quick_xml::{Reader, XmlVersion};

/// The largest body that is looked at, in bytes. A plan with 256 limits, 256 keys and a
/// deep hierarchy takes about 100 KiB.
pub(super) const MAX_BODY: usize = 1_024 * 1_024;

/// Elements within elements. A `<status>` has four.
const MAX_DEPTH: usize = 8;

/// Bytes of one text or attribute value, decoded.
const MAX_VALUE: usize = 4_096;

/// Why a body says nothing that can be relied on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The body is over 1 MiB.
    #[error("the body is too large")]
    TooLarge,
    /// The body is not UTF-8.
    #[error("the body is not UTF-8")]
    NotUtf8,
    /// The body is not one whole, well-formed XML document.
    #[error("the body is not well-formed XML")]
    NotWellFormed,
    /// It has what the backend never sends: a document type, CDATA, a comment, a processing
    /// instruction, or an entity that XML does not define.
    #[error("the body has XML beyond elements, attributes and text")]
    Unsupported,
    /// Elements stand within elements beyond any `<status>`.
    #[error("the body is nested too deeply")]
    TooDeep,
    /// The root is not `<status>`, or something in it stands twice.
    #[error("the body is no <status>")]
    NotAStatus,
    /// `<authorized>` is missing or contradicts the HTTP status.
    #[error("<authorized> is missing or contradicts the HTTP status")]
    Authorized,
    /// A limit has no metric, an unknown period, no window, or a number that is none.
    #[error("a <usage_report> cannot be read")]
    UsageReport,
    /// There are more limits than an authorization may hold.
    #[error("there are too many <usage_report>s")]
    TooManyUsageReports,
    /// Limits are exceeded and none is listed.
    #[error("limits are exceeded and no <usage_report> is there")]
    NoUsageReports,
    /// The hierarchy has an entry without a name, or more of them than there may be.
    #[error("the <hierarchy> cannot be read")]
    Hierarchy,
}

/// What stands next in a document.
enum Node<'a> {
    Open(BytesStart<'a>),
    Text(Cow<'a, str>),
    Close,
    End,
}

/// A document that is walked once, from the front.
pub(super) struct Document<'a> {
    reader: Reader<&'a [u8]>,
    depth: usize,
}

impl<'a> Document<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        let mut reader = Reader::from_str(text);
        // So that `<a/>` and `<a></a>` are the same.
        reader.config_mut().expand_empty_elements = true;
        Self { reader, depth: 0 }
    }

    fn next(&mut self) -> Result<Node<'a>, Malformed> {
        loop {
            let event = self
                .reader
                .read_event()
                .map_err(|_| Malformed::NotWellFormed)?;
            return Ok(match event {
                Event::Start(start) => {
                    self.depth = self.depth.saturating_add(1);
                    if self.depth > MAX_DEPTH {
                        return Err(Malformed::TooDeep);
                    }
                    Node::Open(start)
                }
                Event::End(_) => {
                    // `quick-xml` has checked that it closes what is open.
                    self.depth = self.depth.saturating_sub(1);
                    Node::Close
                }
                Event::Text(text) => Node::Text(text.into_inner()),
                Event::GeneralRef(reference) => Node::Text(Cow::Owned(
                    match reference
                        .resolve_char_ref()
                        .map_err(|_| Malformed::NotWellFormed)?
                    {
                        Some(character) => character.to_string(),
                        None => resolve_xml_entity(&reference)
                            .ok_or(Malformed::Unsupported)?
                            .to_owned(),
                    },
                )),
                Event::Decl(_) => continue,
                Event::Eof if self.depth == 0 => Node::End,
                // Cut off.
                Event::Eof => return Err(Malformed::NotWellFormed),
                // With `expand_empty_elements` there is no `Empty`.
                Event::Empty(_)
                | Event::CData(_)
                | Event::Comment(_)
                | Event::PI(_)
                | Event::DocType(_) => return Err(Malformed::Unsupported),
            });
        }
    }

    /// The next element inside the one that was opened last (at first: inside the
    /// document); `None` when that one has ended. Each must be read or skipped to its end
    /// before the next. Only white space may stand between elements.
    pub(super) fn child(&mut self) -> Result<Option<BytesStart<'a>>, Malformed> {
        loop {
            match self.next()? {
                Node::Open(start) => return Ok(Some(start)),
                Node::Close | Node::End => return Ok(None),
                Node::Text(text) if is_blank(&text) => {}
                Node::Text(_) => return Err(Malformed::NotWellFormed),
            }
        }
    }

    /// The text of the element that was opened last, which has no children, without the
    /// white space around it.
    pub(super) fn text(&mut self) -> Result<String, Malformed> {
        let mut whole = String::new();
        loop {
            match self.next()? {
                Node::Text(text) => {
                    if whole.len().saturating_add(text.len()) > MAX_VALUE {
                        return Err(Malformed::TooLarge);
                    }
                    whole.push_str(&text);
                }
                Node::Close => return Ok(whole.trim_ascii().to_owned()),
                Node::Open(_) | Node::End => return Err(Malformed::NotWellFormed),
            }
        }
    }

    /// Leaves the element that was opened last, whatever is in it.
    pub(super) fn skip(&mut self) -> Result<(), Malformed> {
        let outside = self.depth.saturating_sub(1);
        while self.depth > outside {
            self.next()?;
        }
        Ok(())
    }
}

/// An attribute's value with its entities resolved; `None` if it is not there.
pub(super) fn attribute(element: &BytesStart<'_>, name: &str) -> Result<Option<String>, Malformed> {
    let attribute = element
        .try_get_attribute(name)
        .map_err(|_| Malformed::NotWellFormed)?;
    let Some(attribute) = attribute else {
        return Ok(None);
    };
    let value = attribute
        .normalized_value(XmlVersion::Implicit1_0)
        .map_err(|_| Malformed::NotWellFormed)?;
    if value.len() > MAX_VALUE {
        return Err(Malformed::TooLarge);
    }
    Ok(Some(value.into_owned()))
}

/// The code of an `<error code="...">` document, from its first element alone: whatever
/// follows, a message with the consumer's bytes among it, has no say.
pub(super) fn error_code(body: &[u8]) -> Option<String> {
    /// The declaration and the longest code take about 100 bytes.
    const MAX_ERROR_HEAD: usize = 1_024;
    let head = body.get(..MAX_ERROR_HEAD).unwrap_or(body);
    let text = head.utf8_chunks().next()?.valid();
    let root = Document::new(text).child().ok()??;
    if root.name().into_inner() != "error" {
        return None;
    }
    attribute(&root, "code").ok()?
}

/// The text of an `<error>` document; `None` if it cannot be read, as where the backend did
/// not escape what is in it. Says nothing that [`error_code`] does not say first.
pub(super) fn error_text(body: &[u8]) -> Option<String> {
    /// The longest name of a metric, each byte as an entity, and what stands around it.
    const MAX_ERROR: usize = 2_048;
    let text = std::str::from_utf8(body.get(..body.len().min(MAX_ERROR))?).ok()?;
    let mut document = Document::new(text);
    let root = document.child().ok()??;
    if root.name().into_inner() != "error" {
        return None;
    }
    document.text().ok()
}

fn is_blank(text: &str) -> bool {
    text.trim_ascii().is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    fn text(document: &str) -> Result<String, Malformed> {
        let mut document = Document::new(document);
        document.child()?.ok_or(Malformed::NotAStatus)?;
        document.text()
    }

    #[test]
    fn predefined_and_numeric_entities_are_read_and_no_others() {
        assert_eq!(
            text("<a> &lt;&amp;&#65;&#x42;&quot; </a>").as_deref(),
            Ok("<&AB\"")
        );
        assert_eq!(text("<a>&nbsp;</a>"), Err(Malformed::Unsupported));
        assert_eq!(text("<a>&#0;</a>"), Err(Malformed::NotWellFormed));
        assert_eq!(text("<a>a & b</a>"), Err(Malformed::NotWellFormed));
    }

    #[test]
    fn nothing_defines_entities_or_hides_text() {
        for document in [
            "<!DOCTYPE a [<!ENTITY b \"c\">]><a>&b;</a>",
            "<a><![CDATA[b]]></a>",
            "<a>1<!-- -->0</a>",
            "<a><?b?></a>",
        ] {
            assert_eq!(text(document), Err(Malformed::Unsupported), "{document}");
        }
    }

    #[test]
    fn what_is_cut_off_is_not_well_formed() {
        for document in ["<a>1", "<a>1</a", "<a", "<a>1</b>"] {
            assert_eq!(text(document), Err(Malformed::NotWellFormed), "{document}");
        }
    }

    #[test]
    fn depth_is_bounded_in_what_is_skipped_too() {
        let deep = "<a>".repeat(MAX_DEPTH + 1);
        let mut document = Document::new(&deep);
        document.child().unwrap();
        assert_eq!(document.skip(), Err(Malformed::TooDeep));
    }

    #[test]
    fn an_error_code_is_the_root_s_and_nothing_else_s() {
        let code = |body: &[u8]| error_code(body);
        assert_eq!(
            code(b"<?xml version=\"1.0\"?>\n<error code=\"x_y\">key \"\xff<error code='z'>")
                .as_deref(),
            Some("x_y")
        );
        assert_eq!(code(b""), None);
        assert_eq!(code(b"<html><error code=\"x\"/></html>"), None);
        assert_eq!(code(b"not found <error code=\"x\"/>"), None);
        assert_eq!(code(b"<error>code=\"x\"</error>"), None);
    }
}
