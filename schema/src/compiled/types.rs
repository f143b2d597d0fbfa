//! The types and root fields that compiled queries can read.

use std::{collections::HashMap, sync::Arc};

use crate::{
    agent::Agent,
    catalogue::{model::Model, persona::Persona, provider::Provider},
    circle::{Circle, members::CircleMember},
    conversation::{Conversation, messages::Message},
    data::{Fields, List, Noun},
    project::Project,
    task::Task,
    user::User,
};

/// Object types by name, and root fields.
pub(crate) struct Types {
    objects: HashMap<String, Fields>,
    /// The types that root fields return by id.
    by_id: HashMap<&'static str, String>,
    /// The types that root fields list.
    all: HashMap<&'static str, String>,
}

impl Types {
    pub(crate) fn new() -> Self {
        let mut types = Self {
            objects: HashMap::new(),
            by_id: HashMap::new(),
            all: HashMap::new(),
        };
        types.add::<Agent>();
        types.add::<Circle>();
        types.add::<CircleMember>();
        types.add::<Conversation>();
        types.add::<Message>();
        types.add::<Model>();
        types.add::<Persona>();
        types.add::<Project>();
        types.add::<Provider>();
        types.add::<Task>();
        types.add::<User>();
        types
    }

    fn add<N: Noun>(&mut self) {
        let fields = Fields::from(N::fields());
        if let Some(root) = fields.by_id {
            self.by_id.insert(root, fields.name.clone());
        }
        if let Some((root, _)) = fields.all {
            self.all.insert(root, fields.name.clone());
        }
        self.objects.insert(fields.name.clone(), fields);
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Fields> {
        self.objects.get(name)
    }

    /// The type that a root field returns by id.
    pub(crate) fn by_id(&self, root: &str) -> Option<&Fields> {
        self.get(self.by_id.get(root)?)
    }

    /// The list that a root field returns.
    pub(crate) fn all(&self, root: &str) -> Option<&Arc<List>> {
        let (_, list) = self.get(self.all.get(root)?)?.all.as_ref()?;
        Some(list)
    }
}
