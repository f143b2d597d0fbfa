//! Walks the schema as a user, and records the received data.

use super::*;

/// The maximum number of ids of one `nodes` field, and of entries of one page.
pub(super) const MOST: usize = 100;

/// The maximum number of root fields of one document.
pub(super) const ROOTS: usize = 20;

/// The data that a user has received.
#[derive(Default)]
pub(super) struct Seen {
    /// The types of objects.
    pub(super) types: BTreeSet<String>,
    /// Fields that had a value.
    pub(super) fields: BTreeSet<(String, String)>,
    /// The objects, each with its type.
    pub(super) things: BTreeMap<String, String>,
    /// All ids, in any field.
    pub(super) ids: BTreeSet<String>,
    /// Private fields that had a value, with the id of the object.
    pub(super) private: BTreeSet<(String, String)>,
    /// Row ids in the form that the database uses.
    pub(super) bare: BTreeSet<String>,
    /// The total count of each connection, and the number of its entries if they fit on one page.
    pub(super) counts: Vec<(String, u64, Option<u64>)>,
    /// The total count of each root list, and the number of its entries.
    pub(super) lists: BTreeMap<String, (u64, u64)>,
    /// Lists with further pages: the object, the field, and the cursor.
    pub(super) unfinished: Vec<(String, String, Value)>,
    /// The codes of errors.
    pub(super) codes: BTreeSet<String>,
}

impl Seen {
    pub(super) fn note(&mut self, value: &Value) {
        match value {
            Value::Object(object) => {
                let ty = object.get("__typename").and_then(Value::as_str);
                if let Some(ty) = ty {
                    self.note_object(ty, value);
                }
                object.values().for_each(|value| self.note(value));
            }
            Value::Array(list) => list.iter().for_each(|value| self.note(value)),
            Value::String(text) => self.note_text(text),
            _ => {}
        }
    }

    pub(super) fn note_object(&mut self, ty: &str, value: &Value) {
        self.types.insert(ty.to_owned());
        let mut fields = BTreeMap::new();
        for (key, value) in value.as_object().into_iter().flatten() {
            let name = key.split_once("__").filter(|(of, _)| *of == ty);
            let name = name.map_or(&**key, |(_, name)| name);
            if !value.is_null() {
                self.fields.insert((ty.to_owned(), name.to_owned()));
                fields.insert(name, value);
            }
        }
        if let Some(Value::String(id)) = fields.get("id") {
            self.things.insert(id.clone(), ty.to_owned());
            for (name, value) in &fields {
                let page = &value["pageInfo"];
                if page["hasNextPage"] == true {
                    let at = page["endCursor"].clone();
                    self.unfinished.push((id.clone(), (*name).to_owned(), at));
                }
            }
            for (of, name) in PRIVATE {
                if of == ty && fields.contains_key(name) {
                    self.private.insert((id.clone(), name.to_owned()));
                }
            }
        }
        if let (Some(total), Some(Value::Array(edges))) =
            (fields.get("totalCount"), fields.get("edges"))
        {
            let page = &value["pageInfo"];
            let is_all = page["hasNextPage"] == false && page["hasPreviousPage"] == false;
            let all = is_all.then_some(edges.len() as u64);
            let total = total.as_u64().expect("a count");
            self.counts.push((ty.to_owned(), total, all));
        }
    }

    pub(super) fn note_text(&mut self, text: &str) {
        let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        for word in text.split(|c| !is_part(c)) {
            if decoded(word).is_some() {
                self.ids.insert(word.to_owned());
            }
            if word.len() == 36 && Uuid::parse_str(word).is_ok() {
                self.bare.insert(word.to_owned());
            }
        }
    }
}

/// The prefix and the row id of a public id.
pub(super) fn decoded(id: &str) -> Option<(String, Uuid)> {
    const DIGITS: &str = "0123456789abcdefghjkmnpqrstvwxyz";
    let (prefix, digits) = id.rsplit_once('_')?;
    if digits.len() != 26 || !digits.starts_with(|digit: char| digit <= '7') {
        return None;
    }
    let row = digits.chars().try_fold(0_u128, |row, digit| {
        Some(row << 5 | DIGITS.find(digit)? as u128)
    })?;
    Some((prefix.to_owned(), Uuid::from_u128(row)))
}

/// The traversal of the schema by one user.
pub(super) struct Walk<'a> {
    pub(super) server: &'a TestServer,
    pub(super) schema: &'a Schema,
    pub(super) token: String,
    pub(super) seen: Seen,
}

impl<'a> Walk<'a> {
    pub(super) async fn of(email: &str, server: &'a TestServer, schema: &'a Schema) -> Self {
        Self::with(server.token(email).await, server, schema)
    }

    /// The traversal by the caller with this token or key.
    pub(super) fn with(token: String, server: &'a TestServer, schema: &'a Schema) -> Self {
        Self {
            server,
            schema,
            token,
            seen: Seen::default(),
        }
    }

    /// The data and the codes of the errors; `None` if the document is too complex.
    pub(super) async fn ask(
        &mut self,
        document: &str,
        variables: Value,
    ) -> Option<(Value, Vec<String>)> {
        let answer = self
            .server
            .with_token(&self.token)
            .answer(document, variables)
            .await;
        let errors = answer["errors"].as_array().into_iter().flatten();
        let codes: Vec<String> = errors
            .map(|error| {
                error["extensions"]["code"]
                    .as_str()
                    .expect("a code")
                    .to_owned()
            })
            .collect();
        if codes == ["QUERY_TOO_COMPLEX"] {
            return None;
        }
        // The fields that are not open to API keys are refused before the operation runs.
        let is_refused = self.token.starts_with("gth_") && codes == ["FORBIDDEN"];
        assert!(
            is_refused || answer.get("data").is_some(),
            "{document}: {answer}"
        );
        self.seen.codes.extend(codes.iter().cloned());
        self.seen.note(&answer["data"]);
        Some((answer["data"].clone(), codes))
    }

    /// A field with everything that can be selected below it, up to `steps` objects beyond the next one.
    pub(super) fn field(&self, field: &Field, steps: usize, page: usize) -> String {
        let (name, ty) = (&field.name, field.named());
        if !self.schema.is_composite(ty) {
            return name.clone();
        }
        let selection = match steps {
            0 if self.schema.is_node(ty) => self.leaf(ty),
            _ if self.schema.is_node(ty) => self.selection(ty, steps - 1, page),
            _ => self.selection(ty, steps, page),
        };
        let mut arguments = self.widest(field);
        if field.argument("first").is_some() {
            arguments.push(format!("first: {page}"));
        }
        assert_eq!(
            field.required().count(),
            0,
            "add the arguments of {name} here"
        );
        format!("{name}{} {selection}", listed(&arguments))
    }

    /// The filter that includes the most entries of a list.
    pub(super) fn widest(&self, field: &Field) -> Vec<String> {
        let filter = field.argument("filter").into_iter();
        let filter = filter.flat_map(|filter| &self.schema.get(filter.named()).inputs);
        let including: Vec<_> = filter
            .filter(|input| input.name.starts_with("include"))
            .map(|input| format!("{}: true", input.name))
            .collect();
        match *including {
            [] => Vec::new(),
            _ => vec![format!("filter: {{{}}}", including.join(", "))],
        }
    }

    pub(super) fn leaf(&self, ty: &str) -> String {
        assert!(self.schema.field(ty, "id").is_some(), "{ty} has no id");
        "{ __typename id }".to_owned()
    }

    pub(super) fn selection(&self, ty: &str, steps: usize, page: usize) -> String {
        if !self.schema.is_abstract(ty) {
            return format!("{{ __typename {} }}", self.fields(ty, "", steps, page));
        }
        let possible = self.schema.get(ty).possible.iter();
        // Fields of the same name may have different types, so they need aliases.
        let possible = possible.map(|ty| {
            let fields = self.fields(ty, &format!("{ty}__"), steps, page);
            format!("... on {ty} {{ {fields} }}")
        });
        format!(
            "{{ __typename {} }}",
            possible.collect::<Vec<_>>().join(" ")
        )
    }

    pub(super) fn fields(&self, ty: &str, alias: &str, steps: usize, page: usize) -> String {
        let fields = self.schema.get(ty).fields.iter();
        let fields = fields.map(|field| {
            let selected = self.field(field, steps, page);
            match alias {
                "" => selected,
                alias => format!("{alias}{}: {selected}", field.name),
            }
        });
        fields.collect::<Vec<_>>().join(" ")
    }

    /// Requests objects of a type by their ids, with ever smaller pages until the document is not too complex.
    pub(super) async fn nodes(
        &mut self,
        ty: &str,
        ids: &[String],
        fields: impl Fn(&Self, usize) -> String,
    ) {
        for ids in ids.chunks(MOST) {
            let mut page = MOST;
            loop {
                let fields = fields(self, page);
                let document = format!(
                    "query ($ids: [ID!]!) {{ nodes(ids: $ids) {{ __typename ... on {ty} {{ id {fields} }} }} }}"
                );
                if self.ask(&document, json!({ "ids": ids })).await.is_some() {
                    break;
                }
                assert_ne!(page, 1, "too complex: {document}");
                page = page.div_ceil(2);
            }
        }
    }

    /// Reads every root field without required arguments, and also each list filtered by objects of `world`.
    pub(super) async fn roots(&mut self, world: &BTreeMap<String, String>) {
        let schema = self.schema;
        for field in &schema.get("Query").fields {
            if field.required().next().is_some() {
                continue;
            }
            if schema.node_of(field.named()).is_none() {
                let document = format!("{{ {} }}", self.field(field, 1, 5));
                self.ask(&document, json!({}))
                    .await
                    .expect("is not too complex");
                continue;
            }
            self.list(field, &self.widest(field), Some(&field.name))
                .await;
            for narrowed in self.narrowings(field, world) {
                self.list(field, &[narrowed], None).await;
            }
            // The first objects of the list, with their edges.
            let document = |page| format!("{{ {} }}", self.field(field, 1, page));
            let documents: Vec<_> = [5, 2, 1].map(document).into();
            let mut asked = None;
            for document in documents {
                asked = asked.or(self.ask(&document, json!({})).await);
            }
            assert!(asked.is_some(), "{} is too complex", field.name);
        }
    }

    /// Reads a list from its beginning to its end.
    pub(super) async fn list(&mut self, field: &Field, arguments: &[String], name: Option<&str>) {
        let arguments = [
            arguments,
            &["first: 100".to_owned(), "after: $after".to_owned()],
        ]
        .concat();
        let selection = self.selection(field.named(), 0, MOST);
        let document = format!(
            "query ($after: String) {{ list: {}{} {selection} }}",
            field.name,
            listed(&arguments)
        );
        let (mut after, mut entries) = (Value::Null, 0);
        loop {
            let asked = self.ask(&document, json!({ "after": after })).await;
            let (data, codes) = asked.expect("is not too complex");
            let list = &data["list"];
            if list.is_null() {
                assert_eq!(codes.len(), 1, "{document}");
                return;
            }
            entries += list["edges"].as_array().expect("edges").len() as u64;
            if list["pageInfo"]["hasNextPage"] == false {
                let total = list["totalCount"].as_u64().expect("a count");
                if let Some(name) = name {
                    self.seen.lists.insert(name.to_owned(), (total, entries));
                }
                return;
            }
            after = list["pageInfo"]["endCursor"].clone();
        }
    }

    /// The arguments that filter a list by the id of an object of `world`, if there is one.
    pub(super) fn narrowings(
        &self,
        field: &Field,
        world: &BTreeMap<String, String>,
    ) -> Vec<String> {
        const EACH: usize = 3;
        let ids = |name: &str| {
            let prefix = match name {
                "assigneeId" | "reviewerId" => "agent",
                "actorId" => "user",
                "subjectId" | "targetId" => "task",
                name => name.strip_suffix("Id").expect("an id"),
            };
            let start = format!("{prefix}_");
            let ids: Vec<_> = world
                .keys()
                .filter(|id| id.starts_with(&start))
                .take(EACH)
                .collect();
            assert!(
                !ids.is_empty(),
                "no id has the prefix {prefix}, which {name} needs"
            );
            ids
        };
        let mut narrowings = Vec::new();
        if world.is_empty() {
            return narrowings;
        }
        for argument in &field.arguments {
            if argument.named() == "ID" {
                let ids = ids(&argument.name).into_iter();
                narrowings.extend(ids.map(|id| format!("{}: \"{id}\"", argument.name)));
            }
            if argument.name != "filter" {
                continue;
            }
            for input in &self.schema.get(argument.named()).inputs {
                if input.named() == "ID" {
                    let ids = ids(&input.name).into_iter();
                    narrowings
                        .extend(ids.map(|id| format!("filter: {{{}: \"{id}\"}}", input.name)));
                }
            }
        }
        narrowings
    }

    /// Requests each object by its id. An object that is not returned must be `NOT_FOUND`.
    pub(super) async fn look_up(&mut self, world: &BTreeMap<String, String>) {
        let schema = self.schema;
        for field in &schema.get("Query").fields {
            let required: Vec<_> = field.required().map(|argument| &*argument.name).collect();
            if required != ["id"] {
                assert!(
                    required.is_empty() || required == ["ids"],
                    "add the arguments of {} here",
                    field.name
                );
                continue;
            }
            let ty = field.named();
            let of_type = |of: &str| {
                of == ty
                    || schema
                        .get(ty)
                        .possible
                        .iter()
                        .any(|possible| possible == of)
            };
            let ids: Vec<_> = world
                .iter()
                .filter(|(_, of)| of_type(of))
                .map(|(id, _)| id)
                .collect();
            assert!(!ids.is_empty(), "no object has an id for {}", field.name);
            for ids in ids.chunks(ROOTS) {
                let lookups = ids.iter().enumerate();
                let lookups = lookups.map(|(n, id)| {
                    format!("a{n}: {}(id: \"{id}\") {{ __typename id }} ", field.name)
                });
                let document = format!("{{ {} }}", lookups.collect::<String>());
                let asked = self.ask(&document, json!({})).await;
                let (data, codes) = asked.expect("is not too complex");
                let absent = data
                    .as_object()
                    .expect("data")
                    .values()
                    .filter(|value| value.is_null());
                assert_eq!(codes, vec!["NOT_FOUND"; absent.count()], "{document}");
            }
        }
    }

    /// Reads all fields of these objects, and their lists to the end.
    pub(super) async fn visit(&mut self, world: &BTreeMap<String, String>) {
        let schema = self.schema;
        for (ty, ids) in by_type(world) {
            self.seen.unfinished.clear();
            self.nodes(&ty, &ids, |walk, page| walk.fields(&ty, "", 0, page))
                .await;
            while let Some((id, name, at)) = self.seen.unfinished.pop() {
                let field = schema.field(&ty, &name).expect("a field");
                let after = format!("after: {at}, first: ");
                let rest = |walk: &Self, page: usize| {
                    walk.field(field, 0, page).replacen("first: ", &after, 1)
                };
                self.nodes(&ty, &[id], rest).await;
            }
        }
    }

    /// Follows each edge of a few received objects per type, and reads all fields of its target.
    pub(super) async fn go_further(&mut self) {
        const EACH: usize = 8;
        let schema = self.schema;
        for (ty, mut ids) in by_type(&self.seen.things) {
            if !schema.is_node(&ty) {
                continue;
            }
            // The first and the last ids, because those objects differ most.
            if ids.len() > EACH {
                ids.drain(EACH / 2..ids.len() - EACH / 2);
            }
            for field in &schema.get(&ty).fields {
                if schema.is_composite(field.named()) {
                    let selected = |walk: &Self, page: usize| walk.field(field, 1, page.min(10));
                    self.nodes(&ty, &ids, selected).await;
                }
            }
        }
    }
}

pub(super) fn listed(arguments: &[String]) -> String {
    match arguments {
        [] => String::new(),
        some => format!("({})", some.join(", ")),
    }
}

pub(super) fn by_type(world: &BTreeMap<String, String>) -> BTreeMap<String, Vec<String>> {
    let mut types: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (id, ty) in world {
        types.entry(ty.clone()).or_default().push(id.clone());
    }
    types
}
