//! All patterns of a service in one trie, walked once per request.
//!
//! Apart from the rules because it knows nothing of them but their numbers: which
//! patterns match this path? What that means is for the rules to say.
//!
//! Why a walk is cheap. Text is deterministic: a node has at most one edge for
//! the next byte. Only placeholders branch, and a placeholder needs to be entered but once per
//! path: its place in the trie fixes how many boundaries lie before it, so all its runs end at the
//! same boundary, and the run that starts first contains the ends of all the others. So a
//! walk costs at most the sum, over the placeholders it enters, of their runs times the text that follows
//! them within the segment. Nothing is tried twice, and nothing recurses.

use smallvec::SmallVec;

use super::canonical::is_boundary;
use super::pattern::{Pattern, Piece};

/// A trie over the pieces of patterns. Node 0 is the root; edges lead to later nodes or are
/// split by them, and every node but the root has exactly one way in.
#[derive(Clone, Debug)]
pub(super) struct Index {
    nodes: Vec<Node>,
    /// How many nodes have a mark.
    marks: usize,
}

#[derive(Clone, Debug, Default)]
struct Node {
    /// Patterns that end here and match whatever follows.
    open: Vec<usize>,
    /// Patterns that end here and match if the path does, too.
    anchored: Vec<usize>,
    /// Sorted by first byte, which differ.
    edges: Vec<Edge>,
    /// Where a placeholder leads that follows here.
    placeholder: Option<usize>,
    /// On a node behind a placeholder: whether all that follows starts with a boundary, so that only
    /// the end of the run is of interest.
    continues_at_boundary: bool,
    /// On a node that one walk may come to repeatedly, having passed a placeholder
    /// in the same segment: the place to note the first time.
    mark: Option<usize>,
}

#[derive(Clone, Debug)]
struct Edge {
    /// Never empty.
    text: Box<[u8]>,
    to: usize,
}

impl Edge {
    fn first(&self) -> u8 {
        self.text.first().copied().unwrap_or_default()
    }
}

impl Node {
    fn edge(&self, byte: u8) -> Result<&Edge, usize> {
        self.edges
            .binary_search_by_key(&byte, Edge::first)
            .and_then(|at| self.edges.get(at).ok_or(at))
    }
}

impl Default for Index {
    fn default() -> Self {
        Self {
            nodes: vec![Node::default()],
            marks: 0,
        }
    }
}

impl Index {
    /// The index of these patterns; their numbers count from 0.
    pub(super) fn new<'a>(patterns: impl IntoIterator<Item = &'a Pattern>) -> Self {
        let mut index = Self::default();
        for (number, pattern) in patterns.into_iter().enumerate() {
            index.insert(number, pattern);
        }
        index.finish();
        index
    }

    fn insert(&mut self, number: usize, pattern: &Pattern) {
        let mut node = 0;
        for piece in &pattern.pieces {
            node = match piece {
                Piece::Text(text) => self.follow_or_grow(node, text),
                Piece::Placeholder => {
                    match self.nodes.get(node).and_then(|node| node.placeholder) {
                        Some(next) => next,
                        None => {
                            let new = self.grow(Node::default());
                            if let Some(node) = self.nodes.get_mut(node) {
                                node.placeholder = Some(new);
                            }
                            new
                        }
                    }
                }
            };
        }
        if let Some(node) = self.nodes.get_mut(node) {
            if pattern.anchored {
                node.anchored.push(number);
            } else {
                node.open.push(number);
            }
        }
    }

    fn grow(&mut self, node: Node) -> usize {
        let place = self.nodes.len();
        self.nodes.push(node);
        place
    }

    /// The node that this text leads to, made if need be.
    fn follow_or_grow(&mut self, mut from: usize, mut text: &[u8]) -> usize {
        while let Some(first) = text.first() {
            // The place a new node will have.
            let new = self.nodes.len();
            let Some(node) = self.nodes.get_mut(from) else {
                return from;
            };
            let at = match node.edges.binary_search_by_key(first, Edge::first) {
                Ok(at) => at,
                Err(at) => {
                    let text = text.into();
                    node.edges.insert(at, Edge { text, to: new });
                    return self.grow(Node::default());
                }
            };
            let Some(edge) = node.edges.get_mut(at) else {
                return from;
            };
            let common = edge
                .text
                .iter()
                .zip(text)
                .take_while(|(a, b)| a == b)
                .count();
            let next = edge.to;
            let Some((shared, rest)) = edge.text.split_at_checked(common) else {
                return from;
            };
            from = if rest.is_empty() {
                next
            } else {
                let lower = Edge {
                    text: rest.into(),
                    to: next,
                };
                edge.text = shared.into();
                edge.to = new;
                self.grow(Node {
                    edges: vec![lower],
                    ..Node::default()
                })
            };
            text = text.get(common..).unwrap_or_default();
        }
        from
    }

    /// Works out what depends on the neighbourhood of a node, once all are there.
    fn finish(&mut self) {
        // Each with whether a placeholder stands before it in its segment.
        let mut pending = vec![(0, false)];
        while let Some((place, behind_placeholder)) = pending.pop() {
            let Some(node) = self.nodes.get_mut(place) else {
                continue;
            };
            for edge in &node.edges {
                let leaves_segment = edge.text.iter().any(|byte| is_boundary(*byte));
                pending.push((edge.to, behind_placeholder && !leaves_segment));
            }
            node.continues_at_boundary = node.placeholder.is_none()
                && node.edges.iter().all(|edge| is_boundary(edge.first()));
            let placeholder = node.placeholder;
            if behind_placeholder && !node.open.is_empty() && node.mark.is_none() {
                node.mark = Some(self.marks);
                self.marks = self.marks.saturating_add(1);
            }
            if let Some(place) = placeholder {
                if behind_placeholder && let Some(node) = self.nodes.get_mut(place) {
                    node.mark = Some(self.marks);
                    self.marks = self.marks.saturating_add(1);
                }
                pending.push((place, true));
            }
        }
    }

    /// Calls `found` with the number of each pattern that matches the canonical path,
    /// once each, in no particular order.
    pub(super) fn find(&self, path: &[u8], found: impl FnMut(usize)) {
        let mut walk = Walk {
            index: self,
            path,
            found,
            entered: SmallVec::new(),
            marks: SmallVec::from_elem(false, self.marks),
        };
        if let Some(root) = self.nodes.first() {
            walk.follow(root, 0);
        }
        while let Some((node, start)) = walk.entered.pop() {
            walk.run(node, start);
        }
    }
}

/// One walk along one path.
struct Walk<'a, F> {
    index: &'a Index,
    path: &'a [u8],
    found: F,
    /// Placeholders yet to be run through, each with the place in the path where its run starts.
    entered: SmallVec<[(&'a Node, usize); 8]>,
    /// Which of the nodes with a mark were come to.
    marks: SmallVec<[bool; 32]>,
}

impl<'a, F: FnMut(usize)> Walk<'a, F> {
    /// Follows the text from this node, from this place in the path, and enters the placeholders on the
    /// way. The patterns that end at the node itself are the caller's.
    fn follow(&mut self, mut node: &'a Node, mut at: usize) {
        while let Some(byte) = self.path.get(at) {
            if let Some(next) = node.placeholder
                && !is_boundary(*byte)
                && let Some(next) = self.index.nodes.get(next)
                && self.is_first_visit(next)
            {
                self.entered.push((next, at));
            }
            let Ok(edge) = node.edge(*byte) else {
                return;
            };
            let rest = self.path.get(at..).unwrap_or_default();
            if !rest.starts_with(&edge.text) {
                return;
            }
            at = at.saturating_add(edge.text.len());
            let Some(next) = self.index.nodes.get(edge.to) else {
                return;
            };
            node = next;
            if !node.open.is_empty() && self.is_first_visit(node) {
                self.report(&node.open);
            }
            if at == self.path.len() {
                // No mark needed: to a given place in the path, a node is come to once.
                self.report(&node.anchored);
            }
        }
    }

    /// Goes on from the node behind a placeholder, from each place where its run may end. At
    /// `start` there is a byte that is no boundary.
    fn run(&mut self, node: &'a Node, start: usize) {
        let rest = self.path.get(start..).unwrap_or_default();
        let length = rest.iter().position(|byte| is_boundary(*byte));
        let end = start.saturating_add(length.unwrap_or(rest.len()));
        self.report(&node.open);
        if end == self.path.len() {
            self.report(&node.anchored);
        }
        if node.continues_at_boundary {
            self.follow(node, end);
        } else {
            // Ascending, so that a placeholder further on is first entered where it first can be.
            for at in start.saturating_add(1)..=end {
                self.follow(node, at);
            }
        }
    }

    fn report(&mut self, patterns: &[usize]) {
        for pattern in patterns {
            (self.found)(*pattern);
        }
    }

    fn is_first_visit(&mut self, node: &Node) -> bool {
        match node.mark.and_then(|mark| self.marks.get_mut(mark)) {
            Some(mark) => !std::mem::replace(mark, true),
            None => true,
        }
    }
}
