//! The settings that the commands declare: each argument that has an environment variable.

use clap::{Arg, ArgAction, Command};
use meterd_domain::names;
use std::any::TypeId;
use std::collections::BTreeMap;

/// Names the settings file itself, so it cannot be in one.
const CONFIG: &str = "config";

/// What a settings file writes for a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Flag,
    Number,
    Text,
    List,
}

impl Kind {
    fn of(arg: &Arg) -> Self {
        let is = |types: &[TypeId]| types.iter().any(|of| arg.get_value_parser().type_id() == *of);
        if matches!(arg.get_action(), ArgAction::Append) {
            Self::List
        } else if is(&[TypeId::of::<bool>()]) {
            Self::Flag
        } else if is(&[TypeId::of::<u16>(), TypeId::of::<u32>(), TypeId::of::<u64>(), TypeId::of::<i32>()]) {
            Self::Number
        } else {
            Self::Text
        }
    }
}

/// One setting.
pub(super) struct Declared {
    /// The key in a settings file.
    pub id: String,
    /// The name after the dashes; the key too, with underscores.
    pub flag: String,
    pub variable: String,
    pub kind: Kind,
    /// Whether its value is shown nowhere.
    pub is_secret: bool,
    pub is_hidden: bool,
    pub arg: Arg,
    /// The commands that take it; every one if there is none here.
    pub commands: Vec<String>,
}

/// All settings of a tree of commands, by their keys.
pub(super) struct Catalogue {
    settings: BTreeMap<String, Declared>,
    /// Other arguments with the command that each belongs to.
    arguments: BTreeMap<String, String>,
}

impl Catalogue {
    pub fn of(command: &Command) -> Self {
        let mut catalogue = Self { settings: BTreeMap::new(), arguments: BTreeMap::new() };
        catalogue.add(command, &[]);
        catalogue
    }

    fn add(&mut self, command: &Command, path: &[&str]) {
        for arg in command.get_arguments().filter(|arg| arg.get_id() != CONFIG) {
            let id = arg.get_id().to_string();
            let Some(variable) = arg.get_env().map(|name| name.to_string_lossy().into_owned()) else {
                self.arguments.entry(id).or_insert_with(|| path.join(" "));
                continue;
            };
            let setting = self.settings.entry(id.clone()).or_insert_with(|| Declared {
                flag: arg.get_long().unwrap_or(&id).to_owned(),
                id,
                variable,
                kind: Kind::of(arg),
                is_secret: arg.is_hide_env_values_set(),
                is_hidden: arg.is_hide_set(),
                arg: arg.clone(),
                commands: vec![],
            });
            setting.commands.extend(path.first().map(|name| name.to_string()));
            setting.commands.dedup();
        }
        for sub in command.get_subcommands() {
            self.add(sub, &[path, &[sub.get_name()]].concat());
        }
    }

    /// The setting with this key, written with dashes or underscores, as its id or as its flag.
    pub fn find(&self, key: &str) -> Option<&Declared> {
        let key = key.replace('-', "_");
        self.settings.get(&key).or_else(|| self.iter().find(|setting| setting.flag.replace('-', "_") == key))
    }

    pub fn iter(&self) -> impl Iterator<Item = &Declared> {
        self.settings.values()
    }

    /// The command with an argument of this name that is no setting.
    pub fn command_of_argument(&self, key: &str) -> Option<&str> {
        self.arguments.get(&key.replace('-', "_")).map(String::as_str).filter(|command| !command.is_empty())
    }

    /// The setting that a wrong key or variable means, if one is near.
    pub fn meant(&self, wrong: &str) -> Option<&Declared> {
        let wrong = wrong.to_lowercase().replace('-', "_");
        let wrong = wrong.strip_prefix("meterd_").unwrap_or(&wrong);
        let nearest = names::nearest(wrong, self.settings.keys().map(String::as_str));
        self.find(wrong).or_else(|| self.find(nearest.first()?))
    }
}

impl Declared {
    /// Whether this command takes it.
    pub fn is_of(&self, command: &str) -> bool {
        self.commands.is_empty() || self.commands.iter().any(|name| name == command)
    }
}

/// "; did you mean x?", or nothing.
pub(super) fn did_you_mean(name: Option<&str>) -> String {
    name.map(|name| format!("; did you mean {name}?")).unwrap_or_default()
}
