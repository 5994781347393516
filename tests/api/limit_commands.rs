//! `meterd limits` with a running server.

use crate::command_selections::fail;
use crate::commands::{meterd, succeed};
use crate::harness::*;
use crate::limits::november;
use serde_json::Value;

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_are_set_listed_checked_and_deleted() {
    let server = november().await;
    server.create_client_in_zone("acme", "UTC").await;
    let missing = fail(&server, &["limits", "set", "acme", "messages", "--measure", "units"]).await;
    assert!(missing.contains("add --per and --amount"), "{missing}");
    let set = "limits set acme messages --measure units --per day --amount 10 --hard --service sms --label team=red";
    let set: Vec<&str> = set.split(' ').collect();
    let shown = succeed(&server, &set).await;
    assert!(shown.contains("service sms; label team=red") && shown.contains("80 %, 90 %, 100 %"), "{shown}");
    succeed(&server, &["limits", "set", "acme", "spend", "--measure", "cost", "--per", "month", "--amount", "50"])
        .await;
    let changed = ["limits", "set", "acme", "spend", "--amount", "60", "--alert-percents", "50,100", "--json"];
    let changed = json(&succeed(&server, &changed).await);
    assert_eq!((&changed["amount"], &changed["alert_percents"]), (&"60".into(), &Value::from(vec![50, 100])));
    let refused = fail(&server, &["limits", "set", "acme", "spend", "--measure", "units"]).await;
    assert!(refused.contains("cannot be changed"), "{refused}");

    let labels = [("team".to_owned(), "red".to_owned())].into();
    server.track(meterd::proto::UsageEvent { labels, ..event("acme", "sms", "9") }).await.unwrap();
    let status = json(&succeed(&server, &["limits", "check", "acme", "--json"]).await);
    assert_eq!((&status["state"], &status["binding_limit_id"]), (&"yellow".into(), &"messages".into()));
    let of_messages = &status["limits"][0];
    assert_eq!((&of_messages["used"], &of_messages["remaining"]), (&"9".into(), &"1".into()));
    assert_eq!(of_messages["period"], "2026-11-21");
    let refused = fail(&server, &["limits", "set", "acme", "messages", "--amount", "8.5"]).await;
    assert!(refused.contains("allow_below_used"), "{refused}");
    succeed(&server, &["limits", "set", "acme", "messages", "--amount", "8.5", "--allow-below-used"]).await;
    // The exit code says that a hard limit is reached.
    let checked = meterd(&server, &["limits", "check", "acme", "--service", "sms"]).await;
    let text = String::from_utf8(checked.stdout).unwrap();
    assert_eq!(checked.status.code(), Some(1), "{text}");
    assert!(text.contains("a hard limit is reached; limit messages binds"), "{text}");
    let all = succeed(&server, &["limits", "check"]).await;
    assert_eq!(all.lines().count(), 3, "{all}");
    let alerts = succeed(&server, &["alerts", "list", "--type", "limit", "--json"]).await;
    let percents: Vec<i64> = alerts.lines().map(|line| json(line)["limit"]["percent"].as_i64().unwrap()).collect();
    assert_eq!(percents.iter().max(), Some(&100), "{alerts}");

    let listed = succeed(&server, &["limits", "list", "acme", "--json"]).await;
    assert_eq!(listed.lines().count(), 2);
    let unknown = fail(&server, &["limits", "delete", "acme", "message"]).await;
    assert!(unknown.contains("messages"), "{unknown}");
    succeed(&server, &["limits", "delete", "acme", "messages"]).await;
    assert_eq!(succeed(&server, &["limits", "list", "acme"]).await.lines().count(), 2);
    let unknown = fail(&server, &["limits", "list", "acmee"]).await;
    assert!(unknown.contains("acme"), "{unknown}");
    server.stop().await;
}
