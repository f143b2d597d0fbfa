//! The catalogue: providers, models and personas, which administrators change and every user reads.

use futures_util::future::join;
use gathering_entity::{model, provider};
use sea_orm::{EntityTrait, PaginatorTrait};
use serde_json::{Value, json};

use super::{ADMIN, DEMO, GUEST, Team, faults, forbidden, not_found, uuid, wrong};
use crate::accounts::audit::until_recorded;

const NO_PROVIDER: &str = "provider_01h455vb4pex5vsknk084sn02q";
const NO_MODEL: &str = "model_01h455vb4pex5vsknk084sn02q";
const NO_PERSONA: &str = "persona_01h455vb4pex5vsknk084sn02q";

impl Team {
    async fn provider(&self, name: &str) -> Value {
        let input = json!({ "name": name, "displayName": "A provider" });
        self.thing(ADMIN, "createProvider", input).await
    }

    async fn model(&self, provider: &Value, name: &str) -> Value {
        let input = json!({ "providerId": provider["id"], "name": name, "displayName": "A model" });
        self.thing(ADMIN, "createModel", input).await
    }

    async fn persona(&self, name: &str) -> Value {
        let input = json!({ "name": name, "displayName": "A persona", "role": "Is there" });
        self.thing(ADMIN, "createPersona", input).await
    }

    /// Asserts that every user reads exactly these changes of an object: the changed fields, and whether it was
    /// deleted.
    async fn assert_told(&self, kind: &str, thing: &Value, name: &str, changes: &[(Value, bool)]) {
        let actor = self.user(ADMIN).await;
        let expected: Vec<_> = changes
            .iter()
            .map(|(changed, is_deleted)| {
                json!({
                    "type": kind, "actor": { "id": actor }, "subjectId": thing["id"], "name": name,
                    "isDeleted": is_deleted, "changed": changed,
                })
            })
            .collect();
        for reader in [ADMIN, GUEST] {
            let events = self.events(reader, &thing["id"], changes.len()).await;
            assert_eq!(events, expected, "{reader}");
        }
        let rows = self.rows(&thing["id"]).await;
        for row in &rows {
            assert_eq!(
                (row.owner_id, row.circle_id, row.agent_id),
                (None, None, None)
            );
            assert_eq!(row.payload["v"], 1);
        }
        // Clients tell changes apart by `updatedAt`, so the event must carry the object's value.
        let last = rows.last().expect("an event");
        let told = last.payload["updatedAt"].as_str().expect("a time");
        let told = chrono::DateTime::parse_from_rfc3339(told).expect("a time");
        let shown = thing["updatedAt"].as_str().expect("a time");
        let shown = chrono::DateTime::parse_from_rfc3339(shown).expect("a time");
        assert_eq!(told, shown);
    }
}

#[tokio::test]
async fn provider_changes_are_announced_to_every_user() {
    let team = Team::new().await;
    let input = json!({
        "name": " my-provider_2 ", "displayName": "Mine", "apiBaseUrl": "https://example.com/v1", "isLocal": true,
    });
    let made = team.thing(ADMIN, "createProvider", input).await;
    let id = made["id"].clone();
    let expected = json!({
        "id": id, "name": "my-provider_2", "displayName": "Mine", "apiBaseUrl": "https://example.com/v1",
        "isLocal": true, "createdAt": made["createdAt"], "updatedAt": made["createdAt"],
    });
    assert_eq!(made, expected);
    let update =
        json!({ "providerId": id, "displayName": "Ours", "apiBaseUrl": null, "isLocal": true });
    let changed = team.thing(ADMIN, "updateProvider", update.clone()).await;
    assert_eq!(changed["displayName"], "Ours");
    assert_eq!(changed["apiBaseUrl"], Value::Null);
    assert_eq!(changed["isLocal"], true);
    assert_ne!(changed["updatedAt"], made["updatedAt"]);
    // Repeating the update changes nothing.
    let same = team.thing(ADMIN, "updateProvider", update).await;
    assert_eq!(same, changed);
    team.delete(ADMIN, "deleteProvider", &id).await;
    let told = [
        (json!([]), false),
        (json!(["displayName", "apiBaseUrl"]), false),
        (json!([]), true),
    ];
    team.assert_told("PROVIDER_CHANGED", &changed, "my-provider_2", &told)
        .await;
}

#[tokio::test]
async fn model_changes_are_announced_to_every_user() {
    let team = Team::new().await;
    let provider = team.provider("mine").await;
    let made = team.model(&provider, "small").await;
    let id = made["id"].clone();
    let expected = json!({
        "id": id, "name": "small", "displayName": "A model", "provider": { "id": provider["id"] },
        "contextWindow": 128_000, "maxOutput": 4_096, "priceInput": "0.000000", "priceOutput": "0.000000",
        "priceCacheRead": "0.000000", "priceCacheWrite": "0.000000", "supportsVision": false, "supportsTools": true,
        "supportsStreaming": true, "supportsThinking": false, "isDeprecated": false, "updatedAt": made["updatedAt"],
    });
    assert_eq!(made, expected);
    let mut expected = json!({
        "displayName": "Small", "contextWindow": 1, "maxOutput": i32::MAX, "priceInput": "0.000001",
        "priceOutput": "15.000000", "priceCacheRead": "0.270000", "priceCacheWrite": "9223372036854.775807",
        "supportsVision": true, "supportsTools": false, "supportsStreaming": false, "supportsThinking": true,
        "isDeprecated": true,
    });
    let mut update = expected.clone();
    update["modelId"] = id.clone();
    update["priceOutput"] = json!(15);
    update["priceCacheRead"] = json!("0.27");
    let changed = team.thing(ADMIN, "updateModel", update.clone()).await;
    for (field, value) in expected.as_object_mut().expect("an object") {
        assert_eq!(changed[field], *value, "{field}");
    }
    let same = team.thing(ADMIN, "updateModel", update).await;
    assert_eq!(same, changed);
    team.delete(ADMIN, "deleteModel", &id).await;
    let fields = json!([
        "displayName",
        "contextWindow",
        "maxOutput",
        "priceInput",
        "priceOutput",
        "priceCacheRead",
        "priceCacheWrite",
        "supportsVision",
        "supportsTools",
        "supportsStreaming",
        "supportsThinking",
        "isDeprecated"
    ]);
    let told = [(json!([]), false), (fields, false), (json!([]), true)];
    team.assert_told("MODEL_CHANGED", &changed, "small", &told)
        .await;
}

#[tokio::test]
async fn persona_changes_are_announced_to_every_user() {
    let team = Team::new().await;
    let provider = team.provider("mine").await;
    let model = team.model(&provider, "small").await;
    let full = json!({
        "name": " Zoë ", "displayName": "Zoë", "role": "Sees", "category": "tech", "description": "Long.\nLonger.",
        "icon": "eye", "motto": "Look.", "prompt": "You see.", "traits": ["Calm", "calm"], "competencies": ["Rust"],
        "specializations": ["Trees"], "languages": ["English"], "communicationStyle": "terse",
        "defaultModelId": model["id"], "defaultTemperature": 2,
    });
    let made = team.thing(ADMIN, "createPersona", full).await;
    let id = made["id"].clone();
    let expected = json!({
        "id": id, "name": "Zoë", "displayName": "Zoë", "role": "Sees", "category": "tech",
        "description": "Long.\nLonger.", "icon": "eye", "motto": "Look.", "prompt": "You see.", "traits": ["Calm"],
        "competencies": ["rust"], "specializations": ["Trees"], "languages": ["English"],
        "communicationStyle": "terse", "defaultModel": { "id": model["id"] }, "defaultTemperature": 2.0,
        "isBuiltin": false, "updatedAt": made["updatedAt"],
    });
    assert_eq!(made, expected);
    let update = json!({
        "personaId": id, "displayName": "Zoe", "role": "Looks", "category": null, "description": null, "icon": "",
        "motto": null, "prompt": null, "traits": null, "competencies": ["SQL", "RUST"], "specializations": [],
        "languages": ["Greek"], "communicationStyle": null, "defaultModelId": null, "defaultTemperature": 0,
    });
    let changed = team.thing(ADMIN, "updatePersona", update.clone()).await;
    let expected = json!({
        "id": id, "name": "Zoë", "displayName": "Zoe", "role": "Looks", "category": null, "description": null,
        "icon": null, "motto": null, "prompt": null, "traits": [], "competencies": ["sql", "rust"],
        "specializations": [], "languages": ["Greek"], "communicationStyle": null, "defaultModel": null,
        "defaultTemperature": 0.0, "isBuiltin": false, "updatedAt": changed["updatedAt"],
    });
    assert_eq!(changed, expected);
    let same = team.thing(ADMIN, "updatePersona", update).await;
    assert_eq!(same, changed);
    team.delete(ADMIN, "deletePersona", &id).await;
    let rows = team.rows(&id).await;
    let fields = rows[1].payload["changed"].as_array().expect("a list");
    assert_eq!(fields.len(), 14, "{fields:?}");
    let told = [
        (json!([]), false),
        (json!(fields), false),
        (json!([]), true),
    ];
    team.assert_told("PERSONA_CHANGED", &changed, "Zoë", &told)
        .await;
    // Events do not contain the persona's prompt.
    assert!(
        rows.iter()
            .all(|row| !row.payload.to_string().contains("You see"))
    );
}

#[tokio::test]
async fn only_administrators_change_the_catalogue() {
    let team = Team::new().await;
    let provider = team.provider("mine").await;
    let model = team.model(&provider, "small").await;
    let persona = team.persona("Zoë").await;
    let display = "Changed";
    for (name, input) in [
        (
            "createProvider",
            json!({ "name": "theirs", "displayName": display }),
        ),
        (
            "updateProvider",
            json!({ "providerId": provider["id"], "displayName": display }),
        ),
        ("deleteProvider", json!({ "id": provider["id"] })),
        (
            "createModel",
            json!({ "providerId": provider["id"], "name": "theirs", "displayName": display }),
        ),
        (
            "updateModel",
            json!({ "modelId": model["id"], "displayName": display }),
        ),
        ("deleteModel", json!({ "id": model["id"] })),
        (
            "createPersona",
            json!({ "name": "theirs", "displayName": display, "role": "None" }),
        ),
        (
            "updatePersona",
            json!({ "personaId": persona["id"], "displayName": display }),
        ),
        ("deletePersona", json!({ "id": persona["id"] })),
    ] {
        let refused = team.refusal(DEMO, name, input).await;
        assert_eq!(refused, forbidden(), "{name}");
    }
    for thing in [&provider, &model, &persona] {
        assert_eq!(team.rows(&thing["id"]).await.len(), 1, "{thing}");
    }
}

#[tokio::test]
async fn catalogue_changes_are_recorded_in_the_audit_log() {
    let team = Team::new().await;
    let provider = team.provider("mine").await;
    let update = json!({ "providerId": provider["id"], "displayName": "Ours" });
    team.thing(ADMIN, "updateProvider", update.clone()).await;
    team.thing(ADMIN, "updateProvider", update).await;
    let again = json!({ "name": "mine", "displayName": "Again" });
    let refused = team.faults(ADMIN, "createProvider", again).await;
    assert_eq!(refused, wrong([("name", "TAKEN")]));
    team.delete(ADMIN, "deleteProvider", &provider["id"]).await;
    until_recorded(&team.db().await, "catalogue.changed", 3).await;
    let query = "{ auditLog(first: 10, filter: { action: \"catalogue.changed\" }) { nodes { \
        severity actor { id } targetId details } } }";
    let log = team.data(ADMIN, query, json!({})).await;
    let actor = json!({ "id": team.user(ADMIN).await });
    let entry = |changed: Value, is_deleted: bool| {
        json!({
            "severity": "INFO", "actor": actor, "targetId": provider["id"],
            "details": { "name": "mine", "changed": changed, "isDeleted": is_deleted },
        })
    };
    let expected = json!([
        entry(json!([]), true),
        entry(json!(["displayName"]), false),
        entry(json!([]), false),
    ]);
    assert_eq!(log["auditLog"]["nodes"], expected);
}

#[tokio::test]
async fn all_input_errors_of_a_provider_are_reported_together() {
    let team = Team::new().await;
    for name in ["-a", "_a", "Mine", "a b", "a.b", "é", "a\u{661}"] {
        let input = json!({ "name": name, "displayName": "x" });
        let refused = team.payload(ADMIN, "createProvider", input).await;
        assert_eq!(faults(&refused), wrong([("name", "INVALID")]), "{name}");
        assert_eq!(refused["provider"], Value::Null);
    }
    let input =
        json!({ "name": "x".repeat(51), "displayName": " ", "apiBaseUrl": "ftp://example.com" });
    let expected = wrong([
        ("name", "TOO_LONG"),
        ("displayName", "REQUIRED"),
        ("apiBaseUrl", "INVALID"),
    ]);
    assert_eq!(team.faults(ADMIN, "createProvider", input).await, expected);
    let provider = team.provider("0").await;
    let again = json!({ "name": "0", "displayName": "x" });
    let taken = wrong([("name", "TAKEN")]);
    assert_eq!(team.faults(ADMIN, "createProvider", again).await, taken);
    let input = json!({
        "providerId": provider["id"], "displayName": null, "apiBaseUrl": "//example.com", "isLocal": null,
    });
    let expected = wrong([
        ("displayName", "REQUIRED"),
        ("apiBaseUrl", "INVALID"),
        ("isLocal", "REQUIRED"),
    ]);
    let refused = team.payload(ADMIN, "updateProvider", input).await;
    assert_eq!(faults(&refused), expected);
    assert_eq!(refused["provider"], provider);
    let input = json!({ "providerId": NO_PROVIDER, "displayName": "x" });
    let refused = team.refusal(ADMIN, "updateProvider", input).await;
    assert_eq!(refused, not_found("providerId"));
    let input = json!({ "id": NO_PROVIDER });
    let refused = team.refusal(ADMIN, "deleteProvider", input).await;
    assert_eq!(refused, not_found("id"));
}

#[tokio::test]
async fn all_input_errors_of_a_model_are_reported_together() {
    let team = Team::new().await;
    let [one, other] = [team.provider("one").await, team.provider("other").await];
    let input = json!({
        "providerId": one["id"], "name": "x".repeat(101), "displayName": "x".repeat(201), "contextWindow": 0,
        "maxOutput": -1, "priceInput": "-0.000001", "priceOutput": -1, "priceCacheRead": "-1", "priceCacheWrite": "-2",
    });
    let mut expected = vec![
        ("displayName", "TOO_LONG"),
        ("contextWindow", "OUT_OF_RANGE"),
        ("maxOutput", "OUT_OF_RANGE"),
        ("priceInput", "OUT_OF_RANGE"),
        ("priceOutput", "OUT_OF_RANGE"),
        ("priceCacheRead", "OUT_OF_RANGE"),
        ("priceCacheWrite", "OUT_OF_RANGE"),
    ];
    let model = team.model(&one, "small").await;
    let mut update = input.clone();
    let fields = update.as_object_mut().expect("an object");
    fields.retain(|field, _| field != "providerId" && field != "name");
    update["modelId"] = model["id"].clone();
    let of = |expected: &[(&str, &str)]| {
        let mut faults: Vec<_> = expected
            .iter()
            .map(|(field, code)| ((*field).to_owned(), (*code).to_owned()))
            .collect();
        faults.sort_unstable();
        faults
    };
    let refused = team.payload(ADMIN, "updateModel", update).await;
    assert_eq!(faults(&refused), of(&expected));
    assert_eq!(refused["model"], model);
    expected.push(("name", "TOO_LONG"));
    assert_eq!(
        team.faults(ADMIN, "createModel", input).await,
        of(&expected)
    );

    // Model names are unique per provider.
    team.model(&other, "small").await;
    let again = json!({ "providerId": one["id"], "name": "small", "displayName": "x" });
    let taken = wrong([("name", "TAKEN")]);
    assert_eq!(team.faults(ADMIN, "createModel", again).await, taken);
    let nowhere = json!({ "providerId": NO_PROVIDER, "name": "small", "displayName": "x" });
    let refused = team.refusal(ADMIN, "createModel", nowhere).await;
    assert_eq!(refused, not_found("providerId"));
    let input = json!({ "modelId": NO_MODEL, "displayName": "x" });
    let refused = team.refusal(ADMIN, "updateModel", input).await;
    assert_eq!(refused, not_found("modelId"));
    let nulls = json!({ "modelId": model["id"], "priceInput": null, "isDeprecated": null });
    let expected = wrong([("priceInput", "REQUIRED"), ("isDeprecated", "REQUIRED")]);
    assert_eq!(team.faults(ADMIN, "updateModel", nulls).await, expected);
}

#[tokio::test]
async fn all_input_errors_of_a_persona_are_reported_together() {
    let team = Team::new().await;
    let words: Vec<_> = (0..51).map(|n| format!("w{n}")).collect();
    let input = json!({
        "displayName": "x".repeat(201), "role": "x".repeat(201), "category": "x".repeat(51),
        "description": "x".repeat(10_001), "icon": "x\ny", "motto": "x".repeat(501), "prompt": "x".repeat(20_001),
        "traits": words, "competencies": words, "specializations": words, "languages": words,
        "communicationStyle": "x".repeat(51), "defaultTemperature": 2.001,
    });
    let expected = wrong([
        ("displayName", "TOO_LONG"),
        ("role", "TOO_LONG"),
        ("category", "TOO_LONG"),
        ("description", "TOO_LONG"),
        ("icon", "INVALID"),
        ("motto", "TOO_LONG"),
        ("prompt", "TOO_LONG"),
        ("traits", "TOO_MANY"),
        ("competencies", "TOO_MANY"),
        ("specializations", "TOO_MANY"),
        ("languages", "TOO_MANY"),
        ("communicationStyle", "TOO_LONG"),
        ("defaultTemperature", "OUT_OF_RANGE"),
    ]);
    let persona = team.persona("Zoë").await;
    let mut update = input.clone();
    update["personaId"] = persona["id"].clone();
    let refused = team.payload(ADMIN, "updatePersona", update).await;
    assert_eq!(faults(&refused), expected);
    assert_eq!(refused["persona"], persona);
    let mut create = input;
    create["name"] = json!("New");
    assert_eq!(team.faults(ADMIN, "createPersona", create).await, expected);

    let again = json!({ "name": "ZOË", "displayName": "x", "role": "x" });
    let taken = wrong([("name", "TAKEN")]);
    assert_eq!(team.faults(ADMIN, "createPersona", again).await, taken);
    let nowhere =
        json!({ "name": "New", "displayName": "x", "role": "x", "defaultModelId": NO_MODEL });
    let refused = team.refusal(ADMIN, "createPersona", nowhere).await;
    assert_eq!(refused, not_found("defaultModelId"));
    let nowhere = json!({ "personaId": persona["id"], "defaultModelId": NO_MODEL });
    let refused = team.refusal(ADMIN, "updatePersona", nowhere).await;
    assert_eq!(refused, not_found("defaultModelId"));
    let input = json!({ "personaId": NO_PERSONA, "role": "x" });
    let refused = team.refusal(ADMIN, "updatePersona", input).await;
    assert_eq!(refused, not_found("personaId"));
}

#[tokio::test]
async fn catalogue_entries_in_use_cannot_be_deleted() {
    let team = Team::new().await;
    let provider = team.provider("mine").await;
    let model = team.model(&provider, "small").await;
    let persona = team.persona("Zoë").await;
    let update = json!({ "personaId": persona["id"], "defaultModelId": model["id"] });
    let persona = team.thing(ADMIN, "updatePersona", update).await;
    let input = json!({ "name": "Zoë", "personaId": persona["id"] });
    let agent = team.thing(DEMO, "createAgent", input).await;
    assert_eq!(agent["model"]["id"], model["id"]);
    let in_use = wrong([("id", "IN_USE")]);
    for (name, thing) in [
        ("deleteProvider", &provider),
        ("deleteModel", &model),
        ("deletePersona", &persona),
    ] {
        let refused = team
            .payload(ADMIN, name, json!({ "id": thing["id"] }))
            .await;
        assert_eq!(faults(&refused), in_use, "{name}");
        assert_eq!(refused["current"], *thing);
        assert_eq!(refused["deletedId"], Value::Null);
    }
    let builtin = "{ personas(first: 1, filter: { isBuiltin: true }) { nodes { id } } }";
    let builtin = team.data(ADMIN, builtin, json!({})).await;
    let builtin = json!({ "id": builtin["personas"]["nodes"][0]["id"] });
    let protected = wrong([("id", "PROTECTED")]);
    assert_eq!(
        team.faults(ADMIN, "deletePersona", builtin).await,
        protected
    );

    // Without the agent all of them can be deleted; the default model of a persona is optional.
    team.delete(DEMO, "deleteAgent", &agent["id"]).await;
    team.delete(ADMIN, "deleteModel", &model["id"]).await;
    let query = "query($id: ID!) { persona(id: $id) { defaultModel { id } } }";
    let left = team
        .data(ADMIN, query, json!({ "id": persona["id"] }))
        .await;
    assert_eq!(left["persona"]["defaultModel"], Value::Null);
    team.delete(ADMIN, "deletePersona", &persona["id"]).await;
    team.delete(ADMIN, "deleteProvider", &provider["id"]).await;
}

#[tokio::test]
async fn a_provider_cannot_be_deleted_while_a_model_is_added_to_it() {
    let team = Team::new().await;
    let db = team.db().await;
    for n in 0..12 {
        let provider = team.provider(&format!("p{n}")).await;
        let input = json!({ "providerId": provider["id"], "name": "small", "displayName": "x" });
        let made = team.mutate(ADMIN, "createModel", input);
        let delete = json!({ "id": provider["id"] });
        let deleted = team.payload(ADMIN, "deleteProvider", delete);
        let (made, deleted) = join(made, deleted).await;
        let is_there = provider::Entity::find_by_id(uuid(&provider["id"])).count(&db);
        let is_there = is_there.await.expect("counts") == 1;
        assert_eq!(deleted["deletedId"].is_null(), is_there, "{deleted}");
        if is_there {
            assert_eq!(faults(&deleted), wrong([("id", "IN_USE")]));
            let model = uuid(&made["data"]["createModel"]["model"]["id"]);
            let models = model::Entity::find_by_id(model).count(&db);
            assert_eq!(models.await.expect("counts"), 1);
        } else {
            let error = &made["errors"][0]["extensions"];
            assert_eq!(error["code"], "NOT_FOUND", "{made}");
        }
    }
}
