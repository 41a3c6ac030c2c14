//! Documents that would otherwise grow old in silence.

use std::path::{Path, PathBuf};

use p2pdb::edge::config::KEYS;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn the_table_of_settings_has_every_key_with_its_default() {
    let text = read(&root().join("src/docs/operations.md"));
    for key in KEYS {
        let name = if key.section.is_empty() { key.name.into() } else { format!("{}.{}", key.section, key.name) };
        let default = key.default.map_or("from `init`, `join`".into(), |default| format!("`{default}`"));
        let row = format!("| `{name}` | {default} | {}", key.about);
        assert!(text.contains(&row), "operations.md lacks: {row}");
    }
}

/// The targets of `[text](target)` that are files here.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets.filter(|target| !target.contains("://") && !target.starts_with('#'))
}

#[test]
fn links_between_documents_lead_somewhere() {
    let folders =
        ["", "src/docs", "src/docs/adr", "src/docs/measurements", "src/docs/experiment", "migrations", "certs"];
    let documents = folders.iter().flat_map(|folder| std::fs::read_dir(root().join(folder)).unwrap());
    let mut seen = 0;
    for path in documents.map(|item| item.unwrap().path()).filter(|path| path.extension().is_some_and(|e| e == "md")) {
        for target in links(&read(&path)) {
            let file = path.parent().unwrap().join(target.split('#').next().unwrap());
            assert!(file.exists(), "{} links to {target}, which is not there", path.display());
            seen += 1;
        }
    }
    assert!(seen > 5);
}
