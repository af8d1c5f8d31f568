//! The archive that the kernel unpacks, read back by the format's description.

use lockstep_guest::debian::cpio;
use lockstep_guest::debian::tree::{Entry, Node, Tree};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Stdio};

/// A member of an archive, as newc has it.
#[derive(Debug, PartialEq, Eq)]
struct Member {
    name: String,
    inode: u32,
    entry: Entry,
}

/// Reads an archive strictly: every field, every alignment, every padding byte.
fn read(mut archive: &[u8]) -> Vec<Member> {
    let mut members = Vec::new();
    let mut offset = 0;
    let mut take = |bytes: usize| {
        let (taken, rest) = archive.split_at(bytes);
        archive = rest;
        offset += bytes;
        (taken, offset)
    };
    loop {
        let (header, _) = take(110);
        assert_eq!(&header[..6], b"070701");
        let field = |n: usize| {
            let text = std::str::from_utf8(&header[6 + 8 * n..14 + 8 * n]).expect("ASCII");
            u32::from_str_radix(text, 16).expect("a number")
        };
        let [inode, mode, uid, gid, links, modified, bytes] = [0, 1, 2, 3, 4, 5, 6].map(field);
        assert_eq!(
            (field(7), field(8), field(12)),
            (0, 0, 0),
            "device and checksum"
        );
        let (name, end) = take(field(11) as usize);
        let (padding, _) = take(end.next_multiple_of(4) - end);
        assert!(padding.iter().all(|byte| *byte == 0));
        let (terminator, name) = name.split_last().expect("a name");
        assert_eq!(*terminator, 0);
        let name = String::from_utf8(name.to_vec()).expect("UTF-8");
        let (data, end) = take(bytes as usize);
        let data = data.to_vec();
        let (padding, _) = take(end.next_multiple_of(4) - end);
        assert!(padding.iter().all(|byte| *byte == 0));
        if name == "TRAILER!!!" {
            assert_eq!(bytes, 0);
            break;
        }
        assert_eq!(modified, cpio::MODIFIED);
        let node = match mode & 0o170_000 {
            0o040_000 => Node::Directory,
            0o100_000 => Node::File(data.into()),
            0o120_000 => Node::Symlink(String::from_utf8(data).expect("UTF-8")),
            0o020_000 => Node::CharacterDevice {
                major: field(9),
                minor: field(10),
            },
            kind => panic!("{name}: kind {kind:o}"),
        };
        assert_eq!(links, if node == Node::Directory { 2 } else { 1 });
        let entry = Entry {
            mode: mode & 0o7777,
            uid,
            gid,
            node,
        };
        members.push(Member { name, inode, entry });
    }
    assert!(archive.is_empty(), "something follows the trailer");
    members
}

fn nodes() -> impl Strategy<Value = Node> {
    prop_oneof![
        Just(Node::Directory),
        proptest::collection::vec(any::<u8>(), 0..70).prop_map(|data| Node::File(data.into())),
        "[a-z/.]{1,12}".prop_map(Node::Symlink),
        (0_u32..500, 0_u32..500).prop_map(|(major, minor)| Node::CharacterDevice { major, minor }),
    ]
}

fn entries() -> impl Strategy<Value = (String, Entry)> {
    let entry =
        (0_u32..=0o7777, any::<u32>(), any::<u32>(), nodes()).prop_map(|(mode, uid, gid, node)| {
            Entry {
                mode,
                uid,
                gid,
                node,
            }
        });
    ("[a-cé-]{1,3}(/[a-cé-]{1,3}){0,3}", entry)
}

fn archive(tree: &Tree) -> Vec<u8> {
    let mut archive = Vec::new();
    cpio::write(tree, &mut archive).expect("a vector takes everything");
    archive
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(list in proptest::collection::vec(entries(), 0..30)) {
        let mut tree = Tree::new();
        for (path, entry) in list {
            // Some are refused, for leading through a file: what a tree accepts is what is written.
            let _ = tree.insert(&path, entry);
        }
        let members = read(&archive(&tree));
        let written: Vec<(&str, &Entry)> = tree.iter().collect();
        let found: Vec<(&str, &Entry)> = members.iter().map(|member| (member.name.as_str(), &member.entry)).collect();
        prop_assert_eq!(found, written);
        // The kernel links files of one i-node, and makes nothing in a directory that is not there.
        let inodes: BTreeSet<u32> = members.iter().map(|member| member.inode).collect();
        prop_assert_eq!(inodes.len(), members.len());
        for (n, member) in members.iter().enumerate() {
            if let Some((directory, _)) = member.name.rsplit_once('/') {
                let before = members[..n].iter().find(|before| before.name == directory);
                prop_assert!(before.is_some_and(|before| before.entry.node == Node::Directory), "{}", member.name);
            }
        }
    }

    #[test]
    fn the_order_of_insertion_changes_nothing(list in proptest::collection::btree_map("[a-d]{1,2}/[a-d]{1,3}", proptest::collection::vec(any::<u8>(), 0..9), 0..20)) {
        let mut forward = Tree::new();
        let mut backward = Tree::new();
        for (path, data) in &list {
            forward.insert(path, Entry::file(0o644, data.clone())).expect("a file");
        }
        for (path, data) in list.iter().rev() {
            backward.insert(path, Entry::file(0o644, data.clone())).expect("a file");
        }
        prop_assert_eq!(archive(&forward), archive(&backward));
    }
}

#[test]
fn another_program_reads_the_archive() {
    const TEST: &str = "another_program_reads_the_archive";
    let mut tree = Tree::new();
    tree.insert("usr/bin/tool", Entry::file(0o4755, *b"12345"))
        .expect("a file");
    tree.insert("bin", Entry::symlink("usr/bin"))
        .expect("a link");
    let archive = archive(&tree);
    let readers: [(&str, &[&str]); 3] = [
        ("cpio", &["-t"]),
        ("bsdtar", &["-tf", "-"]),
        ("busybox", &["cpio", "-t"]),
    ];
    for (program, arguments) in readers {
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let Ok(mut child) = child else { continue };
        child
            .stdin
            .take()
            .expect("a pipe")
            .write_all(&archive)
            .expect("it reads");
        let output = child.wait_with_output().expect("it ends");
        let names = String::from_utf8(output.stdout).expect("UTF-8");
        assert!(output.status.success(), "{program}");
        assert_eq!(names.trim(), "bin\nusr\nusr/bin\nusr/bin/tool", "{program}");
        return;
    }
    lockstep_perf::not_run::report(
        TEST,
        "none of cpio, bsdtar and busybox is installed: apt-get install cpio",
    );
}
