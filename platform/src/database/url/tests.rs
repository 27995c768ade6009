use super::*;

fn servers(text: &str) -> String {
    text.parse::<DatabaseUrl>().unwrap().to_string()
}

fn parse_error(text: &str) -> String {
    text.parse::<DatabaseUrl>().unwrap_err()
}

#[test]
fn hosts_and_ports_are_parsed_like_libpq() {
    for (url, expected) in [
        ("postgres://user@a:5433/db", "a:5433"),
        ("postgresql://user@a:5433,b:5434/db?target_session_attrs=read-write", "a:5433, b:5434"),
        ("postgres://user:pa%40ss@a:1,b,c:3/db", "a:1, b:5432, c:3"),
        ("postgres://user@[::1]:5433/db", "[::1]:5433"),
        ("postgres://user@[2001:db8::7],b:1/db", "[2001:db8::7]:5432, b:1"),
        ("postgres://user@/db?host=a,b&port=1,2", "a:1, b:2"),
        ("postgres://user@/db?host=a,::1&port=7", "a:7, [::1]:7"),
        ("postgres://user@/db?hostaddr=10.0.0.1", "10.0.0.1:5432"),
        ("postgres://user@%2Fvar%2Frun%2Fpostgresql/db", "/var/run/postgresql:5432"),
        ("postgres://user@/db?host=/tmp/sockets", "/tmp/sockets:5432"),
    ] {
        assert_eq!(servers(url), expected, "{url}");
    }
}

#[test]
fn every_host_has_the_role_and_database_of_the_url() {
    let url: DatabaseUrl = "postgres://ada%40x:secret@a,b/orders?sslmode=require".parse().unwrap();
    assert_eq!(url.username(), "ada@x");
    assert!(url.servers().all(|server| server.get_database() == Some("orders")));
    assert!(url.servers().all(|server| matches!(server.get_ssl_mode(), PgSslMode::Require)));
    assert!(!format!("{url:?}{url}").contains("secret"));
}

#[test]
fn unsupported_parameters_are_rejected() {
    for (url, expected) in [
        ("postgres://user@a/db?target_session_attrs=any", "target_session_attrs"),
        ("postgres://user@a/db?target_session_attrs=standby", "target_session_attrs"),
        ("postgres://user@a/db?channel_binding=require", "`channel_binding`"),
        ("postgres://user@a/db?tcp_user_timeout=1000", "`tcp_user_timeout`"),
        ("postgres://user@a/db?load_balance_hosts=random", "`load_balance_hosts`"),
        ("postgres://user@a/db?connect_timeout=soon", "connect_timeout"),
        ("postgres://user@a,b,c/db?port=1,2", "as many ports as hosts"),
        ("postgres://user@a/db?sslmode=sometimes", "must be a PostgreSQL URL"),
        ("mysql://user@a/db", "must be a PostgreSQL URL"),
        ("postgres://user@a:port/db", "must be a PostgreSQL URL"),
        ("postgres://user@[a]/db", "must be a PostgreSQL URL"),
    ] {
        assert!(parse_error(url).contains(expected), "{url}: {}", parse_error(url));
    }
    let timeout = |text: &str| text.parse::<DatabaseUrl>().unwrap().connect_timeout;
    assert_eq!(timeout("postgres://user@a/db?connect_timeout=7"), Duration::from_secs(7));
    // The part of a password after an unencoded `?` is parsed as parameters, so the error must not contain their names.
    for password in ["top?secret", "top?secret=x", "top?secret&x"] {
        let url = format!("postgres://user:{password}@a/db");
        assert_eq!(parse_error(&url), "has a parameter that is not supported");
    }
}

#[test]
fn plaintext_is_detected_for_remote_hosts() {
    let url = |text: &str| text.parse::<DatabaseUrl>().unwrap();
    for local in ["127.0.0.1", "localhost", "[::1]", "%2Ftmp"] {
        assert!(!url(&format!("postgres://user@{local}/db?sslmode=disable")).may_be_plaintext(), "{local}");
    }
    assert!(url("postgres://user@localhost,db.internal/db?sslmode=disable").is_plaintext());
    assert!(url("postgres://user@db.internal/db?sslmode=allow").is_plaintext());
    let preferred = url("postgres://user@db.internal/db?sslmode=prefer");
    assert!(!preferred.is_plaintext() && preferred.may_be_plaintext());
    assert!(!url("postgres://user@db.internal/db?sslmode=verify-full").may_be_plaintext());
}

#[test]
fn a_standby_ranks_above_an_unreachable_host() {
    let standby = sqlx::Error::from(Unavailable::Standby);
    assert_eq!(Unavailable::of(&standby), Unavailable::Standby);
    let unreachable = sqlx::Error::Io(io::ErrorKind::ConnectionRefused.into());
    assert!(rank(&standby) > rank(&unreachable));
}

#[tokio::test(start_paused = true)]
async fn a_promoted_host_is_found_while_another_does_not_respond() {
    let started = tokio::time::Instant::now();
    let promoted = Duration::from_millis(600);
    let connected = race(vec!["lost", "standby"], |host| async move {
        match host {
            "standby" if started.elapsed() < promoted => Err(Unavailable::Standby.into()),
            "standby" => Ok(host),
            _ => {
                sleep(CONNECT_TIMEOUT).await;
                Err(sqlx::Error::Io(io::ErrorKind::TimedOut.into()))
            }
        }
    });
    assert_eq!(connected.await.unwrap(), "standby");
    assert!(started.elapsed() <= promoted + RETRY_INTERVAL, "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn hosts_that_have_all_responded_are_not_retried() {
    let started = tokio::time::Instant::now();
    let refused = race(vec!["standby", "standby"], |_host| async {
        Err::<(), _>(sqlx::Error::from(Unavailable::Standby))
    });
    assert_eq!(Unavailable::of(&refused.await.unwrap_err()), Unavailable::Standby);
    assert!(started.elapsed() < RETRY_INTERVAL, "{:?}", started.elapsed());
}
