//! The catalogue: providers, models and personas, which administrators change and every user reads.

use futures_util::future::join;
use gathering_entity::{model, provider};
use sea_orm::{EntityTrait, PaginatorTrait};
use serde_json::{Value, json};

use super::{sorted, uuid};
use crate::accounts::audit::until_recorded;
use crate::support::actor::{Demo, faults};

const NO_PROVIDER: &str = "provider_01h455vb4pex5vsknk084sn02q";
const NO_MODEL: &str = "model_01h455vb4pex5vsknk084sn02q";
const NO_PERSONA: &str = "persona_01h455vb4pex5vsknk084sn02q";

impl Demo {
    async fn provider(&self, name: &str) -> Value {
        let input = json!({ "name": name, "displayName": "A provider" });
        self.admin.saved("createProvider", input).await
    }

    async fn model(&self, provider: &Value, name: &str) -> Value {
        let input = json!({ "providerId": provider["id"], "name": name, "displayName": "A model" });
        self.admin.saved("createModel", input).await
    }

    async fn persona(&self, name: &str) -> Value {
        let input = json!({ "name": name, "displayName": "A persona", "role": "Is there" });
        self.admin.saved("createPersona", input).await
    }

    /// Asserts that every user reads exactly these changes of an object: the changed fields, and whether it was
    /// deleted.
    async fn assert_events(
        &self,
        kind: &str,
        thing: &Value,
        name: &str,
        changes: &[(Value, bool)],
    ) {
        let actor = self.admin.id().await;
        let expected: Vec<_> = changes
            .iter()
            .map(|(changed, is_deleted)| {
                json!({
                    "type": kind, "actor": { "id": actor }, "subjectId": thing["id"], "name": name,
                    "isDeleted": is_deleted, "changed": changed,
                })
            })
            .collect();
        for reader in [&self.admin, &self.guest] {
            let events = self.events_of(reader, &thing["id"], changes.len()).await;
            assert_eq!(events, expected);
        }
        let rows = self.rows_of(&thing["id"]).await;
        for row in &rows {
            assert_eq!(
                (row.owner_id, row.circle_id, row.agent_id),
                (None, None, None)
            );
            assert_eq!(row.payload["v"], 1);
        }
        // Clients distinguish changes by `updatedAt`, so the event must carry the object's value.
        let last = rows.last().expect("an event");
        let event = last.payload["updatedAt"].as_str().expect("a time");
        let event = chrono::DateTime::parse_from_rfc3339(event).expect("a time");
        let shown = thing["updatedAt"].as_str().expect("a time");
        let shown = chrono::DateTime::parse_from_rfc3339(shown).expect("a time");
        assert_eq!(event, shown);
    }
}

#[tokio::test]
async fn provider_changes_are_announced_to_every_user() {
    let demo = Demo::start().await;
    let input = json!({
        "name": " my-provider_2 ", "displayName": "Mine", "apiBaseUrl": "https://example.com/v1", "isLocal": true,
    });
    let made = demo.admin.saved("createProvider", input).await;
    let id = made["id"].clone();
    let expected = json!({
        "id": id, "name": "my-provider_2", "displayName": "Mine", "apiBaseUrl": "https://example.com/v1",
        "isLocal": true, "createdAt": made["createdAt"], "updatedAt": made["createdAt"],
    });
    assert_eq!(made, expected);
    let update =
        json!({ "providerId": id, "displayName": "Ours", "apiBaseUrl": null, "isLocal": true });
    let updated = demo.admin.saved("updateProvider", update.clone()).await;
    assert_eq!(updated["displayName"], "Ours");
    assert_eq!(updated["apiBaseUrl"], Value::Null);
    assert_eq!(updated["isLocal"], true);
    assert_ne!(updated["updatedAt"], made["updatedAt"]);
    // Repeating the update changes nothing.
    let same = demo.admin.saved("updateProvider", update).await;
    assert_eq!(same, updated);
    demo.admin.delete("deleteProvider", &id).await;
    let changes = [
        (json!([]), false),
        (json!(["displayName", "apiBaseUrl"]), false),
        (json!([]), true),
    ];
    demo.assert_events("PROVIDER_CHANGED", &updated, "my-provider_2", &changes)
        .await;
}

#[tokio::test]
async fn model_changes_are_announced_to_every_user() {
    let demo = Demo::start().await;
    let provider = demo.provider("mine").await;
    let made = demo.model(&provider, "small").await;
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
    let updated = demo.admin.saved("updateModel", update.clone()).await;
    for (field, value) in expected.as_object_mut().expect("an object") {
        assert_eq!(updated[field], *value, "{field}");
    }
    let same = demo.admin.saved("updateModel", update).await;
    assert_eq!(same, updated);
    demo.admin.delete("deleteModel", &id).await;
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
    let changes = [(json!([]), false), (fields, false), (json!([]), true)];
    demo.assert_events("MODEL_CHANGED", &updated, "small", &changes)
        .await;
}

#[tokio::test]
async fn persona_changes_are_announced_to_every_user() {
    let demo = Demo::start().await;
    let provider = demo.provider("mine").await;
    let model = demo.model(&provider, "small").await;
    let full = json!({
        "name": " Zoë ", "displayName": "Zoë", "role": "Sees", "category": "tech", "description": "Long.\nLonger.",
        "icon": "eye", "motto": "Look.", "prompt": "You see.", "traits": ["Calm", "calm"], "competencies": ["Rust"],
        "specializations": ["Trees"], "languages": ["English"], "communicationStyle": "terse",
        "defaultModelId": model["id"], "defaultTemperature": 2,
    });
    let made = demo.admin.saved("createPersona", full).await;
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
    let updated = demo.admin.saved("updatePersona", update.clone()).await;
    let expected = json!({
        "id": id, "name": "Zoë", "displayName": "Zoe", "role": "Looks", "category": null, "description": null,
        "icon": null, "motto": null, "prompt": null, "traits": [], "competencies": ["sql", "rust"],
        "specializations": [], "languages": ["Greek"], "communicationStyle": null, "defaultModel": null,
        "defaultTemperature": 0.0, "isBuiltin": false, "updatedAt": updated["updatedAt"],
    });
    assert_eq!(updated, expected);
    let same = demo.admin.saved("updatePersona", update).await;
    assert_eq!(same, updated);
    demo.admin.delete("deletePersona", &id).await;
    let rows = demo.rows_of(&id).await;
    let fields = rows[1].payload["changed"].as_array().expect("a list");
    assert_eq!(fields.len(), 14, "{fields:?}");
    let changes = [
        (json!([]), false),
        (json!(fields), false),
        (json!([]), true),
    ];
    demo.assert_events("PERSONA_CHANGED", &updated, "Zoë", &changes)
        .await;
    // Events do not contain the persona's prompt.
    assert!(
        rows.iter()
            .all(|row| !row.payload.to_string().contains("You see"))
    );
}

#[tokio::test]
async fn only_administrators_change_the_catalogue() {
    let demo = Demo::start().await;
    let provider = demo.provider("mine").await;
    let model = demo.model(&provider, "small").await;
    let persona = demo.persona("Zoë").await;
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
        let refused = demo.owner.refused(name, input).await;
        assert_eq!(refused, "FORBIDDEN", "{name}");
    }
    for thing in [&provider, &model, &persona] {
        assert_eq!(demo.rows_of(&thing["id"]).await.len(), 1, "{thing}");
    }
}

#[tokio::test]
async fn catalogue_changes_are_recorded_in_the_audit_log() {
    let demo = Demo::start().await;
    let provider = demo.provider("mine").await;
    let update = json!({ "providerId": provider["id"], "displayName": "Ours" });
    demo.admin.saved("updateProvider", update.clone()).await;
    demo.admin.saved("updateProvider", update).await;
    let again = json!({ "name": "mine", "displayName": "Again" });
    let refused = demo.admin.faults("createProvider", again).await;
    assert_eq!(refused, ["TAKEN name"]);
    demo.admin.delete("deleteProvider", &provider["id"]).await;
    until_recorded(&demo.db.clone(), "catalogue.changed", 3).await;
    let query = "{ auditLog(first: 10, filter: { action: \"catalogue.changed\" }) { nodes { \
        severity actor { id } targetId details } } }";
    let log = demo.admin.ask(query, json!({})).await;
    let actor = json!({ "id": demo.admin.id().await });
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
    let demo = Demo::start().await;
    for name in ["-a", "_a", "Mine", "a b", "a.b", "é", "a\u{661}"] {
        let input = json!({ "name": name, "displayName": "x" });
        let refused = demo.admin.payload("createProvider", input).await;
        assert_eq!(sorted(faults(&refused)), ["INVALID name"], "{name}");
        assert_eq!(refused["provider"], Value::Null);
    }
    let input =
        json!({ "name": "x".repeat(51), "displayName": " ", "apiBaseUrl": "ftp://example.com" });
    let expected = [
        "INVALID apiBaseUrl",
        "REQUIRED displayName",
        "TOO_LONG name",
    ];
    assert_eq!(
        sorted(demo.admin.faults("createProvider", input).await),
        expected
    );
    let provider = demo.provider("0").await;
    let again = json!({ "name": "0", "displayName": "x" });
    let taken = ["TAKEN name"];
    assert_eq!(
        sorted(demo.admin.faults("createProvider", again).await),
        taken
    );
    let input = json!({
        "providerId": provider["id"], "displayName": null, "apiBaseUrl": "//example.com", "isLocal": null,
    });
    let expected = [
        "INVALID apiBaseUrl",
        "REQUIRED displayName",
        "REQUIRED isLocal",
    ];
    let refused = demo.admin.payload("updateProvider", input).await;
    assert_eq!(sorted(faults(&refused)), expected);
    assert_eq!(refused["provider"], provider);
    let input = json!({ "providerId": NO_PROVIDER, "displayName": "x" });
    let refused = demo.admin.refused("updateProvider", input).await;
    assert_eq!(refused, "NOT_FOUND providerId");
    let input = json!({ "id": NO_PROVIDER });
    let refused = demo.admin.refused("deleteProvider", input).await;
    assert_eq!(refused, "NOT_FOUND id");
}

#[tokio::test]
async fn all_input_errors_of_a_model_are_reported_together() {
    let demo = Demo::start().await;
    let [one, other] = [demo.provider("one").await, demo.provider("other").await];
    let input = json!({
        "providerId": one["id"], "name": "x".repeat(101), "displayName": "x".repeat(201), "contextWindow": 0,
        "maxOutput": -1, "priceInput": "-0.000001", "priceOutput": -1, "priceCacheRead": "-1", "priceCacheWrite": "-2",
    });
    let mut expected = vec![
        "OUT_OF_RANGE contextWindow",
        "OUT_OF_RANGE maxOutput",
        "OUT_OF_RANGE priceCacheRead",
        "OUT_OF_RANGE priceCacheWrite",
        "OUT_OF_RANGE priceInput",
        "OUT_OF_RANGE priceOutput",
        "TOO_LONG displayName",
    ];
    let model = demo.model(&one, "small").await;
    let mut update = input.clone();
    let fields = update.as_object_mut().expect("an object");
    fields.retain(|field, _| field != "providerId" && field != "name");
    update["modelId"] = model["id"].clone();
    let refused = demo.admin.payload("updateModel", update).await;
    assert_eq!(sorted(faults(&refused)), expected);
    assert_eq!(refused["model"], model);
    expected.push("TOO_LONG name");
    expected.sort_unstable();
    assert_eq!(
        sorted(demo.admin.faults("createModel", input).await),
        expected
    );

    // Model names are unique per provider.
    demo.model(&other, "small").await;
    let again = json!({ "providerId": one["id"], "name": "small", "displayName": "x" });
    let taken = ["TAKEN name"];
    assert_eq!(sorted(demo.admin.faults("createModel", again).await), taken);
    let nowhere = json!({ "providerId": NO_PROVIDER, "name": "small", "displayName": "x" });
    let refused = demo.admin.refused("createModel", nowhere).await;
    assert_eq!(refused, "NOT_FOUND providerId");
    let input = json!({ "modelId": NO_MODEL, "displayName": "x" });
    let refused = demo.admin.refused("updateModel", input).await;
    assert_eq!(refused, "NOT_FOUND modelId");
    let nulls = json!({ "modelId": model["id"], "priceInput": null, "isDeprecated": null });
    let expected = ["REQUIRED isDeprecated", "REQUIRED priceInput"];
    assert_eq!(
        sorted(demo.admin.faults("updateModel", nulls).await),
        expected
    );
}

#[tokio::test]
async fn all_input_errors_of_a_persona_are_reported_together() {
    let demo = Demo::start().await;
    let words: Vec<_> = (0..51).map(|n| format!("w{n}")).collect();
    let input = json!({
        "displayName": "x".repeat(201), "role": "x".repeat(201), "category": "x".repeat(51),
        "description": "x".repeat(10_001), "icon": "x\ny", "motto": "x".repeat(501), "prompt": "x".repeat(20_001),
        "traits": words, "competencies": words, "specializations": words, "languages": words,
        "communicationStyle": "x".repeat(51), "defaultTemperature": 2.001,
    });
    let expected = [
        "INVALID icon",
        "OUT_OF_RANGE defaultTemperature",
        "TOO_LONG category",
        "TOO_LONG communicationStyle",
        "TOO_LONG description",
        "TOO_LONG displayName",
        "TOO_LONG motto",
        "TOO_LONG prompt",
        "TOO_LONG role",
        "TOO_MANY competencies",
        "TOO_MANY languages",
        "TOO_MANY specializations",
        "TOO_MANY traits",
    ];
    let persona = demo.persona("Zoë").await;
    let mut update = input.clone();
    update["personaId"] = persona["id"].clone();
    let refused = demo.admin.payload("updatePersona", update).await;
    assert_eq!(sorted(faults(&refused)), expected);
    assert_eq!(refused["persona"], persona);
    let mut create = input;
    create["name"] = json!("New");
    assert_eq!(
        sorted(demo.admin.faults("createPersona", create).await),
        expected
    );

    let again = json!({ "name": "ZOË", "displayName": "x", "role": "x" });
    let taken = ["TAKEN name"];
    assert_eq!(
        sorted(demo.admin.faults("createPersona", again).await),
        taken
    );
    let nowhere =
        json!({ "name": "New", "displayName": "x", "role": "x", "defaultModelId": NO_MODEL });
    let refused = demo.admin.refused("createPersona", nowhere).await;
    assert_eq!(refused, "NOT_FOUND defaultModelId");
    let nowhere = json!({ "personaId": persona["id"], "defaultModelId": NO_MODEL });
    let refused = demo.admin.refused("updatePersona", nowhere).await;
    assert_eq!(refused, "NOT_FOUND defaultModelId");
    let input = json!({ "personaId": NO_PERSONA, "role": "x" });
    let refused = demo.admin.refused("updatePersona", input).await;
    assert_eq!(refused, "NOT_FOUND personaId");
}

#[tokio::test]
async fn catalogue_entries_in_use_cannot_be_deleted() {
    let demo = Demo::start().await;
    let provider = demo.provider("mine").await;
    let model = demo.model(&provider, "small").await;
    let persona = demo.persona("Zoë").await;
    let update = json!({ "personaId": persona["id"], "defaultModelId": model["id"] });
    let persona = demo.admin.saved("updatePersona", update).await;
    let input = json!({ "name": "Zoë", "personaId": persona["id"] });
    let agent = demo.owner.saved("createAgent", input).await;
    assert_eq!(agent["model"]["id"], model["id"]);
    let in_use = ["IN_USE id"];
    for (name, thing) in [
        ("deleteProvider", &provider),
        ("deleteModel", &model),
        ("deletePersona", &persona),
    ] {
        let refused = demo.admin.payload(name, json!({ "id": thing["id"] })).await;
        assert_eq!(faults(&refused), in_use, "{name}");
        assert_eq!(refused["current"], *thing);
        assert_eq!(refused["deletedId"], Value::Null);
    }
    let builtin = "{ personas(first: 1, filter: { isBuiltin: true }) { nodes { id } } }";
    let builtin = demo.admin.ask(builtin, json!({})).await;
    let builtin = json!({ "id": builtin["personas"]["nodes"][0]["id"] });
    let protected = ["PROTECTED id"];
    assert_eq!(demo.admin.faults("deletePersona", builtin).await, protected);

    // Without the agent all of them can be deleted; the default model of a persona is optional.
    demo.owner.delete("deleteAgent", &agent["id"]).await;
    demo.admin.delete("deleteModel", &model["id"]).await;
    let query = "query($id: ID!) { persona(id: $id) { defaultModel { id } } }";
    let left = demo.admin.ask(query, json!({ "id": persona["id"] })).await;
    assert_eq!(left["persona"]["defaultModel"], Value::Null);
    demo.admin.delete("deletePersona", &persona["id"]).await;
    demo.admin.delete("deleteProvider", &provider["id"]).await;
}

#[tokio::test]
async fn a_provider_cannot_be_deleted_while_a_model_is_added_to_it() {
    let demo = Demo::start().await;
    let db = demo.db.clone();
    for n in 0..12 {
        let provider = demo.provider(&format!("p{n}")).await;
        let input = json!({ "providerId": provider["id"], "name": "small", "displayName": "x" });
        let made = demo.admin.call("createModel", input);
        let delete = json!({ "id": provider["id"] });
        let deleted = demo.admin.payload("deleteProvider", delete);
        let (made, deleted) = join(made, deleted).await;
        let is_there = provider::Entity::find_by_id(uuid(&provider["id"])).count(&db);
        let is_there = is_there.await.expect("counts") == 1;
        assert_eq!(deleted["deletedId"].is_null(), is_there, "{deleted}");
        if is_there {
            assert_eq!(faults(&deleted), ["IN_USE id"]);
            let model = uuid(&made["data"]["createModel"]["model"]["id"]);
            let models = model::Entity::find_by_id(model).count(&db);
            assert_eq!(models.await.expect("counts"), 1);
        } else {
            let error = &made["errors"][0]["extensions"];
            assert_eq!(error["code"], "NOT_FOUND", "{made}");
        }
    }
}
