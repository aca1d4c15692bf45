//! What the gateway says of the objects that it follows.

use http::StatusCode;
use serde_json::{Value, json};
use strata_hop::Body;

use crate::common::{Mock, PATIENCE, answer, eventually, read, serve_mock};
use crate::world::{KEY, World, governed, keyed, model, object, slice, tenant};
#[tokio::test]
async fn the_status_says_what_is_in_force() {
    let api = governed().await;
    let mock = Mock::new();
    mock.script(|_| answer(10, 5));
    let (url, _stop) = serve_mock(&mock).await;
    let policy = |name: &str, spec: Value| object("QuotaPolicy", "strata", name, spec);
    api.apply(model("team-a", "m", "m"));
    api.apply(slice("team-a", &[(&url, true)]));
    api.apply(policy(
        "base",
        json!({"budget": {"tokens": 1000, "period": "Month"},
        "limits": [{"resource": "Requests", "limit": 100, "window": "1m"}]}),
    ));
    api.apply(policy(
        "acme",
        json!({"selector": {"tenants": ["acme"]},
        "limits": [{"resource": "Requests", "limit": 200, "window": "1m"}]}),
    ));
    api.apply(policy("base-too", json!({"budget": {"tokens": 2000, "period": "Month"}})));
    api.apply(object(
        "Tenant",
        "strata",
        "zeta",
        json!({"models": ["*"], "apiKeys": [{"name": "a", "secretRef": {"name": "nowhere"}}]}),
    ));
    let world = World::new(api, &[]).await;
    assert_eq!(world.chat("m").await.status, StatusCode::OK);
    assert_eq!(world.get("/internal/v1/status", KEY).await.status, StatusCode::UNAUTHORIZED);
    let ask = async || {
        let request = http::Request::get(format!("{}/internal/v1/status", world.url))
            .header("x-strata-hop-token", "hop-secret")
            .body(Body::empty())
            .unwrap();
        read(world.client.send(request, PATIENCE).await.unwrap()).await.json()
    };
    let mut status = ask().await;
    for report in status["tenants"].as_array_mut().unwrap() {
        for usage in report["usage"].as_array_mut().unwrap() {
            for end in ["periodStart", "periodEnd"] {
                let at: jiff::Timestamp = usage[end].as_str().unwrap().parse().unwrap();
                assert_eq!(at.as_second() % 86_400, 0);
                usage[end] = json!("midnight");
            }
        }
    }
    let shown = serde_json::to_string_pretty(&status).unwrap();
    insta::assert_snapshot!(shown, @r#"
    {
      "tenants": [
        {
          "name": "acme",
          "generation": 1,
          "inForce": true,
          "policies": [
            "acme",
            "base",
            "base-too"
          ],
          "usage": [
            {
              "policy": "base",
              "period": "Month",
              "periodStart": "midnight",
              "periodEnd": "midnight",
              "limitTokens": 1000,
              "usedTokens": 15,
              "reservedTokens": 0
            }
          ]
        },
        {
          "name": "zeta",
          "generation": 1,
          "inForce": true,
          "problems": [
            "spec.apiKeys[0]: the Secret nowhere with the label strata.dev/api-key=true and the entries `id` and `hash` is missing; make it, or remove the key here"
          ],
          "policies": [
            "base",
            "base-too"
          ],
          "usage": [
            {
              "policy": "base",
              "period": "Month",
              "periodStart": "midnight",
              "periodEnd": "midnight",
              "limitTokens": 1000,
              "usedTokens": 0,
              "reservedTokens": 0
            }
          ]
        }
      ],
      "policies": [
        {
          "name": "acme",
          "generation": 1,
          "inForce": true,
          "tenants": 1
        },
        {
          "name": "base",
          "generation": 1,
          "inForce": true,
          "tenants": 2,
          "overridden": [
            {
              "limit": "spec.limits[0]",
              "by": "acme",
              "tie": false,
              "tenants": 1,
              "examples": [
                "acme"
              ]
            }
          ]
        },
        {
          "name": "base-too",
          "generation": 1,
          "inForce": true,
          "tenants": 2,
          "overridden": [
            {
              "limit": "spec.budget",
              "by": "base",
              "tie": true,
              "tenants": 2,
              "examples": [
                "acme",
                "zeta"
              ]
            }
          ]
        }
      ]
    }
    "#);

    // A version that cannot be used: what is wrong is told of its generation, and the one before holds.
    world.api.apply(tenant(json!({"timeZone": "Europe/Nowhere"})));
    world.api.apply(policy("acme", json!({"selector": {"tenants": ["acme"]}})));
    let acme = async || ask().await["tenants"][0].clone();
    eventually("the new generation is told", async || acme().await["generation"] == 2).await;
    let told = acme().await;
    assert!(told["problems"][0].as_str().unwrap().contains("IANA"), "{told}");
    assert_eq!(told["inForce"], true);
    assert_eq!(world.chat("m").await.status, StatusCode::OK);
    // Mended without a change of what is in force.
    world.api.apply(tenant(keyed()));
    eventually("it is told", async || acme().await["generation"] == 3).await;
    assert_eq!(acme().await["problems"], Value::Null);
    eventually("nothing gives way any more to acme", async || {
        ask().await["policies"][1]["overridden"] == Value::Null
    })
    .await;
}

#[tokio::test]
async fn the_status_is_not_told_before_it_is_known() {
    let api = governed().await;
    api.hang(true);
    let world = World::starting(api, &[]).await;
    let request = http::Request::get(format!("{}/internal/v1/status", world.url))
        .header("x-strata-hop-token", "hop-secret")
        .body(Body::empty())
        .unwrap();
    let early = read(world.client.send(request, PATIENCE).await.unwrap()).await;
    assert_eq!(early.status, StatusCode::SERVICE_UNAVAILABLE);
}
