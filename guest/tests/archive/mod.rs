//! A package archive in a directory, made by dpkg-deb, for apt-get to read.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

/// A package to be.
#[derive(Debug, Clone)]
pub struct SourcePackage {
    name: String,
    version: String,
    depends: String,
    files: Vec<(String, u32, String)>,
}

impl SourcePackage {
    pub fn new(name: &str, version: &str) -> Self {
        Self {
            name: name.to_owned(),
            version: version.to_owned(),
            depends: String::new(),
            files: Vec::new(),
        }
    }

    pub fn depends(self, depends: &str) -> Self {
        Self {
            depends: depends.to_owned(),
            ..self
        }
    }

    pub fn file(mut self, path: &str, mode: u32, contents: &str) -> Self {
        self.files
            .push((path.to_owned(), mode, contents.to_owned()));
        self
    }

    fn control(&self) -> String {
        let Self {
            name,
            version,
            depends,
            ..
        } = self;
        let mut text = format!(
            "Package: {name}\nVersion: {version}\nArchitecture: amd64\nMaintainer: nobody <nobody@example.org>\n\
             Description: made for a test\n"
        );
        if !depends.is_empty() {
            let _ = writeln!(text, "Depends: {depends}");
        }
        text
    }
}

/// The archive.
pub struct Archive {
    directory: tempfile::TempDir,
}

impl Archive {
    pub fn new(packages: &[SourcePackage]) -> Self {
        let archive = Self {
            directory: tempfile::tempdir().expect("a directory"),
        };
        let path = archive.directory.path().display();
        let sources = format!("deb [trusted=yes] file:{path} ./\n");
        fs::write(archive.directory.path().join("sources.list"), sources).expect("write");
        let configuration = format!(
            "Dir::Etc::sourcelist \"{path}/sources.list\";\nDir::Etc::sourceparts \"{path}/none.d\";\n\
             Dir::Etc::preferences \"{path}/none\";\nDir::Etc::preferencesparts \"{path}/none.d\";\n"
        );
        fs::write(archive.configuration(), configuration).expect("write");
        fs::write(archive.directory.path().join("Packages"), "").expect("write");
        archive.publish(packages);
        archive
    }

    /// Makes apt-get see this archive and no other.
    pub fn configuration(&self) -> PathBuf {
        self.directory.path().join("apt.conf")
    }

    /// Adds packages.
    pub fn publish(&self, packages: &[SourcePackage]) {
        let archive = self.directory.path();
        let mut index = fs::read_to_string(archive.join("Packages")).expect("the index");
        for package in packages {
            let root = archive.join("root");
            for (path, mode, contents) in &package.files {
                let path = root.join(path);
                fs::create_dir_all(path.parent().expect("a directory")).expect("directories");
                fs::write(&path, contents).expect("a file");
                fs::set_permissions(&path, fs::Permissions::from_mode(*mode)).expect("its mode");
            }
            fs::create_dir_all(root.join("DEBIAN")).expect("a directory");
            fs::write(root.join("DEBIAN/control"), package.control()).expect("a file");
            let script = root.join("DEBIAN/postinst");
            fs::write(&script, "#!/bin/sh\ntouch /maintainer-script-ran\n").expect("a file");
            fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("its mode");
            let version = package.version.replace(':', "%3a");
            let file = format!("{}_{version}_amd64.deb", package.name);
            let output = Command::new("dpkg-deb")
                .args(["--build", "--root-owner-group", "-Znone"])
                .args([&root, &archive.join(&file)])
                .env("SOURCE_DATE_EPOCH", "1700000000")
                .output()
                .expect("dpkg-deb");
            assert!(output.status.success(), "{output:?}");
            let sum = Command::new("sha256sum")
                .arg(archive.join(&file))
                .output()
                .expect("sha256sum");
            let sum = String::from_utf8(sum.stdout).expect("text");
            let digest = sum.split_whitespace().next().expect("a digest");
            let bytes = fs::metadata(archive.join(&file))
                .expect("the package")
                .len();
            let _ = writeln!(
                index,
                "{}Filename: ./{file}\nSize: {bytes}\nSHA256: {digest}\n",
                package.control()
            );
            fs::remove_dir_all(&root).expect("it was made above");
        }
        fs::write(archive.join("Packages"), index).expect("write");
    }
}
