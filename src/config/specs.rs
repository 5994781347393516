//! The settings of all commands: each argument that has an environment variable.

use clap::{Arg, ArgAction, Command};
use meterd_domain::names;
use std::any::TypeId;
use std::collections::BTreeMap;

/// The flag of the settings file, which is not a setting.
const CONFIG: &str = "config";

/// The type of a setting in a settings file.
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

/// The specification of a setting.
pub(super) struct SettingSpec {
    /// The key in a settings file.
    pub id: String,
    /// The flag without the leading dashes. With underscores it is also accepted as a key.
    pub flag: String,
    pub variable: String,
    pub kind: Kind,
    /// Whether the value must never be shown.
    pub is_secret: bool,
    pub is_hidden: bool,
    pub arg: Arg,
    /// The commands that use the setting. Empty means all commands.
    pub commands: Vec<String>,
}

/// All settings of a command and its subcommands.
pub(super) struct SettingSpecs {
    settings: BTreeMap<String, SettingSpec>,
    /// Other arguments, each with its command.
    arguments: BTreeMap<String, String>,
}

impl SettingSpecs {
    pub fn of(command: &Command) -> Self {
        let mut specs = Self { settings: BTreeMap::new(), arguments: BTreeMap::new() };
        specs.add(command, &[]);
        specs
    }

    fn add(&mut self, command: &Command, path: &[&str]) {
        for arg in command.get_arguments().filter(|arg| arg.get_id() != CONFIG) {
            let id = arg.get_id().to_string();
            let Some(variable) = arg.get_env().map(|name| name.to_string_lossy().into_owned()) else {
                self.arguments.entry(id).or_insert_with(|| path.join(" "));
                continue;
            };
            let setting = self.settings.entry(id.clone()).or_insert_with(|| SettingSpec {
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

    /// Finds a setting by its id or its flag, written with dashes or underscores.
    pub fn find(&self, key: &str) -> Option<&SettingSpec> {
        let key = key.replace('-', "_");
        self.settings.get(&key).or_else(|| self.iter().find(|setting| setting.flag.replace('-', "_") == key))
    }

    pub fn iter(&self) -> impl Iterator<Item = &SettingSpec> {
        self.settings.values()
    }

    /// The command that has an argument of this name which is not a setting.
    pub fn command_of_argument(&self, key: &str) -> Option<&str> {
        self.arguments.get(&key.replace('-', "_")).map(String::as_str).filter(|command| !command.is_empty())
    }

    /// Finds the setting whose name is most similar to a wrong key or variable.
    pub fn nearest(&self, wrong: &str) -> Option<&SettingSpec> {
        let wrong = wrong.to_lowercase().replace('-', "_");
        let wrong = wrong.strip_prefix("meterd_").unwrap_or(&wrong);
        let nearest = names::nearest(wrong, self.settings.keys().map(String::as_str));
        self.find(wrong).or_else(|| self.find(nearest.first()?))
    }
}

impl SettingSpec {
    /// Whether this command uses the setting.
    pub fn applies_to(&self, command: &str) -> bool {
        self.commands.is_empty() || self.commands.iter().any(|name| name == command)
    }
}

/// Returns "; did you mean x?", or an empty text without a name.
pub(super) fn did_you_mean(name: Option<&str>) -> String {
    name.map(|name| format!("; did you mean {name}?")).unwrap_or_default()
}
