//! Packages and a recipe become a root file system.

use super::error::GuestBuildError;
use super::modules::{self, Modules};
use super::recipe::{Recipe, mode_of};
use super::tree::{Entry, Node, Tree, TreeError};
use std::fmt::Write as _;

/// The guest's first process.
const INIT: &str = include_str!("../../init/init.sh");
/// What serves the control port.
const CONTROL: &str = include_str!("../../init/control.sh");

/// Where a merged `/usr` keeps what packages still put into the root directory.
const MERGED: [(&str, &str); 4] = [
    ("bin", "usr/bin"),
    ("sbin", "usr/sbin"),
    ("lib", "usr/lib"),
    ("lib64", "usr/lib64"),
];

/// What no service reads: documentation, translations, what belongs to an init system, a package manager
/// or a desktop that is not there.
const UNWANTED: [&str; 22] = [
    "/etc/apparmor.d",
    "/etc/cron.*",
    "/etc/init.d",
    "/etc/logrotate.d",
    "/lib/systemd",
    "/usr/lib/systemd",
    "/usr/lib/sysusers.d",
    "/usr/lib/tmpfiles.d",
    "/usr/lib/x86_64-linux-gnu/gconv",
    "/usr/lib/x86_64-linux-gnu/perl-base",
    "/usr/share/bash-completion",
    "/usr/share/bug",
    "/usr/share/doc",
    "/usr/share/doc-base",
    "/usr/share/gcc",
    "/usr/share/info",
    "/usr/share/lintian",
    "/usr/share/locale",
    "/usr/share/man",
    "/usr/share/polkit-1",
    "/usr/share/i18n",
    "/var/cache",
];

/// What the builder adds to packages, as text: part of the digest that names a guest.
pub(super) fn ingredients() -> String {
    format!(
        "{INIT}\0{CONTROL}\0{MERGED:?}\0{UNWANTED:?}\0{:?}",
        modules::NEEDED
    )
}

/// Whether a path of a package belongs into the guest.
pub(super) fn wanted(recipe: Option<&Recipe>) -> impl Fn(&str) -> bool + use<> {
    let without: Vec<String> = recipe.map_or_else(Vec::new, |recipe| recipe.without.clone());
    move |path: &str| {
        !UNWANTED
            .iter()
            .copied()
            .chain(without.iter().map(String::as_str))
            .any(|pattern| is_at_or_below(path, pattern))
    }
}

/// What is kept of the kernel's package until its modules are chosen.
pub(super) fn wanted_of_kernel(path: &str) -> bool {
    let known = ["boot/vmlinuz-", "lib/modules/", "usr/lib/modules/"];
    known.iter().any(|known| path.starts_with(known))
        || known
            .iter()
            .any(|known| known.starts_with(&format!("{path}/")))
}

/// Whether `path` is what the absolute `pattern` names, or inside it. `*` stands for any characters of
/// one component.
fn is_at_or_below(path: &str, pattern: &str) -> bool {
    let mut parts = path.split('/');
    pattern
        .trim_matches('/')
        .split('/')
        .all(|pattern| parts.next().is_some_and(|part| matches(part, pattern)))
}

fn matches(text: &str, pattern: &str) -> bool {
    match pattern.split_once('*') {
        None => text == pattern,
        Some((start, rest)) => text.strip_prefix(start).is_some_and(|text| {
            (0..=text.len())
                .filter(|at| text.is_char_boundary(*at))
                .any(|at| matches(&text[at..], rest))
        }),
    }
}

/// A tree as packages expect to find it: `/usr` merged.
pub(super) fn empty() -> Result<Tree, TreeError> {
    let mut tree = Tree::new();
    for (link, target) in MERGED {
        tree.insert(target, Entry::directory(0o755))?;
        tree.insert(link, Entry::symlink(target))?;
    }
    Ok(tree)
}

/// The kernel that is in `tree`, taken out of it: its release and its image.
pub(super) fn take_kernel(tree: &mut Tree) -> Result<(String, Vec<u8>), GuestBuildError> {
    let mut kernels: Vec<(String, Vec<u8>)> = tree
        .iter()
        .filter_map(|(path, entry)| match &entry.node {
            Node::File(contents) => {
                let release = path.strip_prefix("boot/vmlinuz-")?;
                Some((release.to_owned(), contents.to_vec()))
            }
            _ => None,
        })
        .collect();
    tree.retain(|path| path != "boot");
    match (kernels.pop(), kernels.len()) {
        (Some(kernel), 0) => Ok(kernel),
        (kernel, more) => Err(GuestBuildError::Kernel {
            found: more + usize::from(kernel.is_some()),
        }),
    }
}

/// Leaves of the kernel's modules those that are needed, with the list that init reads. Returns the
/// list.
pub(super) fn keep_modules(
    tree: &mut Tree,
    release: &str,
    wanted: &[String],
) -> Result<Vec<String>, GuestBuildError> {
    let prefix = format!("usr/lib/modules/{release}/");
    let files = tree.iter().filter_map(|(path, entry)| match &entry.node {
        Node::File(contents) if path.starts_with(&prefix) => {
            Some((path.to_owned(), contents.clone()))
        }
        _ => None,
    });
    let built_in = match tree
        .get(&format!("{prefix}modules.builtin"))
        .map(|entry| &entry.node)
    {
        Some(Node::File(contents)) => String::from_utf8_lossy(contents).into_owned(),
        _ => String::new(),
    };
    let order = Modules::new(release, files, &built_in).in_order(wanted)?;
    tree.retain(|path| path != "usr/lib/modules");
    let mut list = String::new();
    let mut paths = Vec::new();
    for (path, contents) in order {
        let _ = writeln!(list, "/{path}");
        insert(tree, &path, Entry::file(0o644, contents))?;
        paths.push(format!("/{path}"));
    }
    insert(
        tree,
        "usr/lib/lockstep/modules",
        Entry::file(0o644, list.into_bytes()),
    )?;
    Ok(paths)
}

/// Adds what the recipe says, and what every guest has: init, users, mount points.
pub(super) fn furnish(tree: &mut Tree, recipe: Option<&Recipe>) -> Result<(), GuestBuildError> {
    for (path, mode) in [
        ("dev", 0o755),
        ("etc", 0o755),
        ("proc", 0o555),
        ("root", 0o700),
        ("run", 0o755),
        ("sys", 0o555),
        ("tmp", 0o1777),
        ("var/log", 0o755),
    ] {
        insert(tree, path, Entry::directory(mode))?;
    }
    let console = Entry {
        mode: 0o600,
        node: Node::CharacterDevice { major: 5, minor: 1 },
        ..Entry::directory(0)
    };
    // The kernel opens it for init before there is a devtmpfs.
    insert(tree, "dev/console", console)?;
    insert(tree, "init", Entry::file(0o755, INIT.as_bytes()))?;
    let control = Entry::file(0o755, CONTROL.as_bytes());
    insert(tree, "usr/lib/lockstep/control", control)?;
    // busybox is in /bin as packaged; scripts want a shell there.
    if tree.get("usr/bin/sh").is_none() {
        insert(tree, "usr/bin/sh", Entry::symlink("busybox"))?;
    }
    insert(tree, "var/run", Entry::symlink("/run"))?;
    accounts(tree, recipe)?;
    let text = |tree: &mut Tree, path: &str, text: &str| {
        if tree.get(path).is_some() {
            return Ok(());
        }
        insert(tree, path, Entry::file(0o644, text.as_bytes()))
    };
    text(tree, "etc/hosts", "127.0.0.1 localhost\n")?;
    text(
        tree,
        "etc/nsswitch.conf",
        "passwd: files\ngroup: files\nhosts: files dns\n",
    )?;
    let Some(recipe) = recipe else {
        return Ok(());
    };
    insert(
        tree,
        "usr/lib/lockstep/service",
        Entry::file(0o644, service(recipe).into_bytes()),
    )?;
    let wrong = |what: String| GuestBuildError::Recipe {
        name: recipe.name.clone(),
        what,
    };
    let owned = |mode: &str, owner: &str, node: Node| -> Result<Entry, GuestBuildError> {
        let id = recipe
            .id_of(owner)
            .ok_or_else(|| wrong(format!("{owner:?} is no user of it")))?;
        Ok(Entry {
            mode: mode_of(mode).map_err(wrong)?,
            uid: id,
            gid: id,
            node,
        })
    };
    for directory in &recipe.directories {
        let entry = owned(&directory.mode, &directory.owner, Node::Directory)?;
        insert(tree, &directory.path, entry)?;
    }
    for file in &recipe.files {
        // The line that opens a literal in TOML is not part of the file.
        let contents = file.text.as_bytes();
        let entry = owned(&file.mode, &file.owner, Node::File(contents.into()))?;
        insert(tree, &file.path, entry)?;
    }
    Ok(())
}

/// passwd(5) and group(5): root, Debian's nobody, the recipe's.
fn accounts(tree: &mut Tree, recipe: Option<&Recipe>) -> Result<(), GuestBuildError> {
    let mut passwd = "root:x:0:0:root:/root:/bin/sh\n".to_owned();
    let mut group = "root:x:0:\ntty:x:5:\n".to_owned();
    for user in recipe.iter().flat_map(|recipe| &recipe.users) {
        let (name, id, home) = (&user.name, user.id, &user.home);
        let _ = writeln!(passwd, "{name}:x:{id}:{id}::{home}:/usr/sbin/nologin");
        let _ = writeln!(group, "{name}:x:{id}:");
    }
    passwd.push_str("nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n");
    group.push_str("nogroup:x:65534:\n");
    for (path, text) in [("etc/passwd", passwd), ("etc/group", group)] {
        insert(tree, path, Entry::file(0o644, text.into_bytes()))?;
    }
    Ok(())
}

/// The shell functions that init calls.
fn service(recipe: &Recipe) -> String {
    let service = &recipe.service;
    let serve = match &service.user {
        None => service.command.trim().to_owned(),
        Some(user) => format!(
            "exec su -s /bin/sh {user} -c {}",
            quoted(&format!("exec {}", service.command.trim()))
        ),
    };
    let prepare = service.prepare.as_deref().unwrap_or(":");
    let functions = [
        ("prepare", Some(prepare)),
        ("serve", Some(serve.as_str())),
        ("ready", Some(service.ready.as_str())),
        // Those that the control port has an answer of its own for.
        ("stop", service.stop.as_deref()),
        ("check", service.check.as_deref()),
    ];
    let mut text = format!("service={}\n", recipe.name);
    if let Some(data) = &recipe.data {
        let _ = writeln!(text, "data={}", quoted(data));
    }
    for (name, body) in functions {
        if let Some(body) = body {
            let _ = writeln!(text, "{name}() {{\n{}\n}}", body.trim());
        }
    }
    text
}

/// One word for a shell, whatever it holds.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

fn insert(tree: &mut Tree, path: &str, entry: Entry) -> Result<(), GuestBuildError> {
    tree.insert(path, entry)
        .map_err(|error| GuestBuildError::PackageContents {
            package: "of the builder's own files".to_owned(),
            what: error.to_string(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_covers_what_it_names_and_what_is_inside() {
        for (path, pattern, covered) in [
            ("usr/share/doc", "/usr/share/doc", true),
            ("usr/share/doc/a/b", "/usr/share/doc", true),
            ("usr/share/doc-base", "/usr/share/doc", false),
            ("usr/share", "/usr/share/doc", false),
            ("etc/cron.d/x", "/etc/cron.*", true),
            ("etc/crontab", "/etc/cron.*", false),
            (
                "usr/lib/postgresql/15/lib/bitcode/x.bc",
                "/usr/lib/postgresql/*/lib/bitcode",
                true,
            ),
            (
                "usr/lib/postgresql/15/lib/x",
                "/usr/lib/postgresql/*/lib/bitcode",
                false,
            ),
            ("usr/lib/libLLVM-14.so.1", "/usr/lib/lib*.so*", true),
        ] {
            assert_eq!(is_at_or_below(path, pattern), covered, "{path} {pattern}");
        }
    }

    #[test]
    fn a_command_that_runs_as_a_user_is_one_word_whatever_it_holds() {
        let text = "summary = 's'\npackages = []\nmemory-mib = 64\n[[users]]\nname = 'me'\nid = 7\nhome = '/'\n\
                    [service]\nuser = 'me'\ncommand = \"run --say 'it''s' $HOME\"\nready = 'true'\n";
        let recipe = Recipe::parse("small", text).expect("a recipe");
        let script = service(&recipe);
        assert!(
            script.contains(r"exec su -s /bin/sh me -c 'exec run --say '\''it'\'''\''s'\'' $HOME'"),
            "{script}"
        );
    }
}
