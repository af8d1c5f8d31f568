//! The guest's root file system, in memory.
//!
//! Package contents go straight from the archive into the tree, with the owners and modes that the
//! archive names: no file of the host ever has them, which is why a build needs no root.

use std::collections::BTreeMap;
use std::sync::Arc;

/// Levels of symbolic links that a path may lead through.
const LINKS_MOST: usize = 16;

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// A directory.
    Directory,
    /// A file and its contents.
    File(Arc<[u8]>),
    /// A symbolic link and its target.
    Symlink(String),
    /// A character device.
    CharacterDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
}

/// What is at a path, and whose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Permission bits: the low 12 of `st_mode`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// What it is.
    pub node: Node,
}

impl Entry {
    /// A directory of root's.
    #[must_use]
    pub fn directory(mode: u32) -> Self {
        Self {
            mode,
            uid: 0,
            gid: 0,
            node: Node::Directory,
        }
    }

    /// A file of root's.
    #[must_use]
    pub fn file(mode: u32, contents: impl Into<Arc<[u8]>>) -> Self {
        Self {
            mode,
            uid: 0,
            gid: 0,
            node: Node::File(contents.into()),
        }
    }

    /// A symbolic link.
    #[must_use]
    pub fn symlink(target: &str) -> Self {
        Self {
            mode: 0o777,
            uid: 0,
            gid: 0,
            node: Node::Symlink(target.to_owned()),
        }
    }
}

/// A path or an entry that cannot be in a tree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// It leaves the tree, or is no path.
    #[error("path {0:?} has a component `..` or a zero byte")]
    Path(String),
    /// Too many symbolic links.
    #[error("path {0:?} leads through more than {LINKS_MOST} symbolic links")]
    Links(String),
    /// A directory would become a file.
    #[error("path {0:?} is a directory, and cannot become a file")]
    Directory(String),
    /// A component on the way is a file.
    #[error("path {path:?} leads through {through:?}, which is no directory")]
    NotADirectory {
        /// The path.
        path: String,
        /// What is in the way.
        through: String,
    },
}

/// A root file system: paths without a leading slash, in order, each one's directory before it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tree {
    entries: BTreeMap<String, Entry>,
}

impl Tree {
    /// Empty but for the root.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts `entry` at `path`, following symbolic links on the way as dpkg does, and making
    /// directories that are missing. What was there is replaced, but a directory stays one: another
    /// gives it its owner and mode, a symbolic link is ignored (dpkg does so too).
    ///
    /// # Errors
    /// A path that has no place here.
    pub fn insert(&mut self, path: &str, entry: Entry) -> Result<(), TreeError> {
        let is_directory = entry.node == Node::Directory;
        let path = self.resolve(path, is_directory)?;
        if path.is_empty() {
            return Ok(());
        }
        self.make_parents(&path)?;
        let was_directory = self
            .entries
            .get(&path)
            .is_some_and(|entry| entry.node == Node::Directory);
        match &entry.node {
            Node::Symlink(_) if was_directory => return Ok(()),
            Node::File(_) | Node::CharacterDevice { .. } if was_directory => {
                return Err(TreeError::Directory(path));
            }
            _ => {}
        }
        self.entries.insert(path, entry);
        Ok(())
    }

    /// What is at `path`, symbolic links on the way followed, but not one at its end.
    #[must_use]
    pub fn get(&self, path: &str) -> Option<&Entry> {
        let path = self.resolve(path, false).ok()?;
        self.entries.get(&path)
    }

    /// All entries; each directory comes before what is in it.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.entries
            .iter()
            .map(|(path, entry)| (path.as_str(), entry))
    }

    /// Keeps what `wanted` says; what is inside a directory that it does not want goes with it.
    pub fn retain(&mut self, mut wanted: impl FnMut(&str) -> bool) {
        self.entries.retain(|path, _| wanted(path));
        let orphans: Vec<String> = self
            .entries
            .keys()
            .filter(|path| {
                path.match_indices('/')
                    .any(|(end, _)| !self.entries.contains_key(&path[..end]))
            })
            .cloned()
            .collect();
        for orphan in orphans {
            self.entries.remove(&orphan);
        }
    }

    /// Bytes of all files.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.entries
            .values()
            .map(|entry| match &entry.node {
                Node::File(contents) => contents.len() as u64,
                _ => 0,
            })
            .sum()
    }

    /// The path without symbolic links on the way, and at its end if `last` is set.
    fn resolve(&self, path: &str, last: bool) -> Result<String, TreeError> {
        let mut todo: Vec<String> = components(path)?.rev().map(str::to_owned).collect();
        let mut done = String::new();
        let mut links = 0;
        while let Some(component) = todo.pop() {
            if component == ".." {
                // From a link's target only: a path of its own has none.
                done.truncate(done.rfind('/').unwrap_or(0));
                continue;
            }
            let parent = done.len();
            if !done.is_empty() {
                done.push('/');
            }
            done.push_str(&component);
            let Some(Entry {
                node: Node::Symlink(target),
                ..
            }) = self.entries.get(&done)
            else {
                continue;
            };
            if todo.is_empty() && !last {
                break;
            }
            links += 1;
            if links > LINKS_MOST {
                return Err(TreeError::Links(path.to_owned()));
            }
            let parts = target.split('/').filter(|part| !matches!(*part, "" | "."));
            todo.extend(parts.rev().map(str::to_owned));
            if target.starts_with('/') {
                done.clear();
            } else {
                done.truncate(parent);
            }
        }
        Ok(done)
    }

    fn make_parents(&mut self, path: &str) -> Result<(), TreeError> {
        for (end, _) in path.match_indices('/') {
            let parent = &path[..end];
            match self.entries.get(parent).map(|entry| &entry.node) {
                Some(Node::Directory) => {}
                Some(_) => {
                    return Err(TreeError::NotADirectory {
                        path: path.to_owned(),
                        through: parent.to_owned(),
                    });
                }
                None => {
                    self.entries
                        .insert(parent.to_owned(), Entry::directory(0o755));
                }
            }
        }
        Ok(())
    }
}

/// The components of a path from outside.
fn components(path: &str) -> Result<impl DoubleEndedIterator<Item = &str>, TreeError> {
    if path.contains('\0') || path.split('/').any(|part| part == "..") {
        return Err(TreeError::Path(path.to_owned()));
    }
    Ok(path.split('/').filter(|part| !matches!(*part, "" | ".")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(tree: &Tree) -> Vec<&str> {
        tree.iter().map(|(path, _)| path).collect()
    }

    #[test]
    fn a_path_leads_through_symbolic_links_as_dpkg_follows_them() {
        let mut tree = Tree::new();
        tree.insert("bin", Entry::symlink("usr/bin")).expect("link");
        tree.insert("./bin/", Entry::directory(0o755))
            .expect("directory");
        tree.insert("/bin/sh", Entry::file(0o755, *b"x"))
            .expect("file");
        tree.insert("var/run", Entry::symlink("../run"))
            .expect("link");
        tree.insert("var/run/a", Entry::file(0o644, *b"y"))
            .expect("file");
        assert_eq!(
            paths(&tree),
            [
                "bin",
                "run",
                "run/a",
                "usr",
                "usr/bin",
                "usr/bin/sh",
                "var",
                "var/run"
            ]
        );
        assert_eq!(
            tree.get("bin").map(|entry| &entry.node),
            Some(&Node::Symlink("usr/bin".to_owned()))
        );
        assert!(tree.get("var/run/a").is_some());
    }

    #[test]
    fn a_path_never_leaves_the_tree() {
        let mut tree = Tree::new();
        let file = || Entry::file(0o644, *b"");
        assert!(matches!(
            tree.insert("../etc/passwd", file()),
            Err(TreeError::Path(_))
        ));
        assert!(matches!(
            tree.insert("a/../../b", file()),
            Err(TreeError::Path(_))
        ));
        tree.insert("out", Entry::symlink("../../../.."))
            .expect("link");
        tree.insert("out/b", file()).expect("clipped at the root");
        assert_eq!(paths(&tree), ["b", "out"]);
        tree.insert("loop", Entry::symlink("loop")).expect("link");
        assert!(matches!(
            tree.insert("loop/x", file()),
            Err(TreeError::Links(_))
        ));
        assert!(matches!(
            tree.insert("b/x", file()),
            Err(TreeError::NotADirectory { .. })
        ));
    }

    #[test]
    fn what_is_dropped_takes_its_contents_along() {
        let mut tree = Tree::new();
        for path in ["a/x", "a-b/x", "a/b/x", "c"] {
            tree.insert(path, Entry::file(0o644, *b"1")).expect("file");
        }
        tree.retain(|path| path != "a");
        assert_eq!(paths(&tree), ["a-b", "a-b/x", "c"]);
        assert_eq!(tree.bytes(), 2);
    }
}
