//! Recipes: which packages make a tenant, and the little that their maintainer scripts would have done.
//!
//! A recipe is a TOML file. The ready ones are in `guest/recipes`; any other is given by its path.

use super::error::GuestBuildError;
use serde::Deserialize;
use std::path::Path;

/// The ready recipes: name and text.
const READY: [(&str, &str); 4] = [
    ("redis", include_str!("../../recipes/redis.toml")),
    ("nginx", include_str!("../../recipes/nginx.toml")),
    ("sqlite", include_str!("../../recipes/sqlite.toml")),
    ("postgresql", include_str!("../../recipes/postgresql.toml")),
];

/// Names of the ready recipes.
pub fn names() -> impl Iterator<Item = &'static str> {
    READY.iter().map(|(name, _)| *name)
}

/// A tenant.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Recipe {
    /// Its name: lower-case letters, digits and `-`. A ready recipe's, or the file's.
    #[serde(skip)]
    pub name: String,
    /// What it is, in a line.
    pub summary: String,
    /// Debian packages, without their dependencies.
    pub packages: Vec<String>,
    /// Packages that others depend on and the tenant does without: they are taken for installed.
    #[serde(default)]
    pub stand_ins: Vec<String>,
    /// Paths that are left out, with `*` for anything within a component.
    #[serde(default)]
    pub without: Vec<String>,
    /// Where the service listens, such as `6379/tcp`: for people.
    #[serde(default)]
    pub ports: Vec<String>,
    /// Memory that the machine should have, MiB.
    pub memory_mib: u32,
    /// The directory of what is to be kept: one of [`Recipe::directories`]. It is on the machine's first disk,
    /// and in memory if there is none.
    #[serde(default)]
    pub data: Option<String>,
    /// Size of the disk that the machine should have for it, MiB; 16 at least.
    #[serde(default)]
    pub disk_mib: Option<u32>,
    /// What runs.
    pub service: Service,
    /// Users to make, each with a group of the same name and number.
    #[serde(default)]
    pub users: Vec<User>,
    /// Directories to make.
    #[serde(default)]
    pub directories: Vec<DirectorySpec>,
    /// Files to make. One that a package brings is replaced.
    #[serde(default)]
    pub files: Vec<FileSpec>,
}

/// What runs. All of it is for busybox' shell.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Service {
    /// Done once as root, before the first start.
    #[serde(default)]
    pub prepare: Option<String>,
    /// Who runs `command`; root if nobody is named.
    #[serde(default)]
    pub user: Option<String>,
    /// The service itself: it stays in the foreground.
    pub command: String,
    /// Ends with status 0 once the service answers.
    pub ready: String,
    /// Asks the process `$server` to end in order; SIGTERM if nothing is said.
    #[serde(default)]
    pub stop: Option<String>,
    /// Checks the data after that: status 0 if they are whole.
    #[serde(default)]
    pub check: Option<String>,
}

/// A user of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct User {
    /// Name.
    pub name: String,
    /// Number of the user and of the group; 1 to 65533.
    pub id: u32,
    /// Home directory.
    pub home: String,
}

/// A directory of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DirectorySpec {
    /// Absolute path.
    pub path: String,
    /// A user of the recipe's, or root.
    #[serde(default = "root")]
    pub owner: String,
    /// Permission bits, octal.
    #[serde(default = "directory_mode")]
    pub mode: String,
}

/// A file of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileSpec {
    /// Absolute path.
    pub path: String,
    /// A user of the recipe's, or root.
    #[serde(default = "root")]
    pub owner: String,
    /// Permission bits, octal.
    #[serde(default = "file_mode")]
    pub mode: String,
    /// Contents.
    pub text: String,
}

fn root() -> String {
    "root".to_owned()
}

fn directory_mode() -> String {
    "0755".to_owned()
}

fn file_mode() -> String {
    "0644".to_owned()
}

impl Recipe {
    /// A ready recipe by its name, or one from a file: what has a `/` or ends in `.toml` is a path.
    ///
    /// # Errors
    /// There is none of that name, or it is wrong.
    pub fn load(name_or_path: &str) -> Result<Self, GuestBuildError> {
        if let Some((name, text)) = READY.iter().find(|(name, _)| *name == name_or_path) {
            return Self::parse(name, text);
        }
        if !name_or_path.contains('/') && !name_or_path.ends_with(".toml") {
            return Err(GuestBuildError::Recipe {
                name: name_or_path.to_owned(),
                what: format!(
                    "there is none of that name; expected {}, or the path of a TOML file",
                    names().collect::<Vec<_>>().join(", ")
                ),
            });
        }
        let path = Path::new(name_or_path);
        let text = std::fs::read_to_string(path).map_err(|source| GuestBuildError::Io {
            doing: "reading recipe",
            path: path.to_owned(),
            source,
        })?;
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        Self::parse(&stem, &text)
    }

    /// A recipe from its text.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn parse(name: &str, text: &str) -> Result<Self, GuestBuildError> {
        let wrong = |what: String| GuestBuildError::Recipe {
            name: name.to_owned(),
            what,
        };
        let recipe: Self = toml::from_str(text).map_err(|error| wrong(error.to_string()))?;
        let recipe = Self {
            name: name.to_owned(),
            ..recipe
        };
        recipe.check().map_err(wrong)?;
        Ok(recipe)
    }

    /// Number of a user of the recipe's, or of root.
    #[must_use]
    pub fn id_of(&self, user: &str) -> Option<u32> {
        if user == "root" {
            return Some(0);
        }
        self.users
            .iter()
            .find(|candidate| candidate.name == user)
            .map(|user| user.id)
    }

    fn check(&self) -> Result<(), String> {
        check_name("the name", &self.name)?;
        for package in self.packages.iter().chain(&self.stand_ins) {
            super::package::check_name(package).map_err(|error| error.to_string())?;
        }
        if !(64..=65_536).contains(&self.memory_mib) {
            return Err(format!(
                "memory-mib is {}; expected 64 to 65536",
                self.memory_mib
            ));
        }
        for user in &self.users {
            check_name("a user's name", &user.name)?;
            check_path(&user.home)?;
            let twice = self
                .users
                .iter()
                .filter(|other| other.id == user.id || other.name == user.name)
                .count();
            if !(1..=65_533).contains(&user.id) || twice > 1 || user.name == "root" {
                return Err(format!(
                    "user {} has the number {}; expected one of its own from 1 to 65533",
                    user.name, user.id
                ));
            }
        }
        if let Some(user) = &self.service.user {
            self.check_owner(user)?;
        }
        for DirectorySpec { path, owner, mode } in &self.directories {
            check_path(path)?;
            self.check_owner(owner)?;
            mode_of(mode)?;
        }
        for FileSpec {
            path, owner, mode, ..
        } in &self.files
        {
            check_path(path)?;
            self.check_owner(owner)?;
            mode_of(mode)?;
        }
        for pattern in &self.without {
            check_path(pattern)?;
        }
        if let Some(disk) = self.disk_mib
            && disk < 16
        {
            return Err(format!("disk-mib is {disk}; expected at least 16"));
        }
        if let Some(data) = &self.data
            && !self.directories.iter().any(|known| known.path == *data)
        {
            return Err(format!(
                "data is {data:?}; expected the path of one of [[directories]], which says whose it is"
            ));
        }
        Ok(())
    }

    fn check_owner(&self, owner: &str) -> Result<(), String> {
        if self.id_of(owner).is_none() {
            return Err(format!(
                "{owner:?} is no user of this recipe; expected root or one of [[users]]"
            ));
        }
        Ok(())
    }
}

/// Permission bits from their octal text.
pub(super) fn mode_of(text: &str) -> Result<u32, String> {
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|mode| *mode <= 0o7777)
        .ok_or_else(|| format!("mode is {text:?}; expected octal digits such as \"0755\""))
}

/// Names go into passwd(5) and into shell text.
fn check_name(what: &str, name: &str) -> Result<(), String> {
    let right = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_');
    if name.is_empty() || name.len() > 32 || !name.chars().all(right) || name.starts_with('-') {
        return Err(format!(
            "{what} is {name:?}; expected 1 to 32 lower-case letters, digits, `-` and `_`"
        ));
    }
    Ok(())
}

fn check_path(path: &str) -> Result<(), String> {
    let odd = path.split('/').any(|part| part == "..") || path.contains(['\0', '\n', ':']);
    if !path.starts_with('/') || odd {
        return Err(format!(
            "path {path:?}; expected an absolute one without `..`"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = "summary = 's'\npackages = ['busybox']\nmemory-mib = 64\n\
                         [service]\ncommand = 'x'\nready = 'true'\n";

    #[test]
    fn every_ready_recipe_is_right() {
        for name in names() {
            let recipe = Recipe::load(name).expect("a ready recipe");
            assert_eq!(recipe.name, name);
            assert!(!recipe.packages.is_empty());
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_what_was_expected() {
        for (from, to, says) in [
            ("busybox", "Busybox", "is no package name"),
            ("busybox", "busybox-", "is no package name"),
            ("memory-mib = 64", "memory-mib = 63", "expected 64 to 65536"),
            ("summary", "sumary", "unknown field `sumary`"),
            (
                "[service]",
                "disk-mib = 15\n[service]",
                "expected at least 16",
            ),
            (
                "[service]",
                "data = '/var/lib/x'\n[service]",
                "expected the path of one of [[directories]]",
            ),
            (
                "ready = 'true'",
                "ready = 'true'\nuser = 'me'",
                "is no user of this recipe",
            ),
            (
                "[service]",
                "without = ['lib']\n[service]",
                "expected an absolute one",
            ),
            (
                "[service]",
                "[[files]]\npath = '/a/../b'\ntext = ''\n[service]",
                "expected an absolute one",
            ),
            (
                "[service]",
                "[[files]]\npath = '/a'\nmode = '999'\ntext = ''\n[service]",
                "expected octal",
            ),
            (
                "[service]",
                "[[users]]\nname = 'a:b'\nid = 5\nhome = '/'\n[service]",
                "expected 1 to 32",
            ),
            (
                "[service]",
                "[[users]]\nname = 'a'\nid = 0\nhome = '/'\n[service]",
                "one of its own from 1",
            ),
            (
                "[service]",
                "[[users]]\nname = 'a'\nid = 7\nhome = '/'\n[[users]]\nname = 'b'\nid = 7\nhome = '/'\n[service]",
                "one of its own",
            ),
        ] {
            let text = SMALL.replacen(from, to, 1);
            let error = Recipe::parse("small", &text).expect_err(to).to_string();
            assert!(error.contains(says), "{to:?}: {error}");
        }
        Recipe::parse("small", SMALL).expect("the text before the changes");
        let error = Recipe::load("reddis")
            .expect_err("no such recipe")
            .to_string();
        assert!(error.contains("redis, nginx"), "{error}");
    }
}
