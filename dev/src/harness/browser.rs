//! A real headless Chromium, controlled over the protocol `WebDriver`.
use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use axum::http::Method;
use fantoccini::{Client, ClientBuilder, Locator, wd::WebDriverCompatibleCommand};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};
use url::Url;

use super::{WAIT_TIMEOUT, eventually};
use crate::{
    process::{Child, Launch},
    project,
};

/// A browser with one window. Dropping the value ends the browser.
pub struct Browser {
    client: Client,
    site: String,
    _driver: Child,
}

impl Browser {
    /// Starts `driver` (`chromedriver`) and the browser `program`, and opens the page with this path of the site.
    pub async fn open(program: &Path, driver: &Path, site: &str, path: &str) -> Self {
        let (driver, port) = start(driver).await;
        let options = json!({
            "binary": program,
            // Chromium's sandbox does not work as root, and a container's shared memory is small.
            "args": ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--hide-scrollbars"],
        });
        let capabilities =
            json!({ "goog:chromeOptions": options, "goog:loggingPrefs": { "browser": "ALL" } });
        let Value::Object(capabilities) = capabilities else {
            unreachable!("the capabilities are not an object")
        };
        let client = ClientBuilder::new(HttpConnector::new())
            .capabilities(capabilities)
            .connect(&format!("http://127.0.0.1:{port}"))
            .await
            .unwrap();
        let browser = Self { client, site: site.to_owned(), _driver: driver };
        browser.resize(1280, 900).await;
        browser.go(path).await;
        browser
    }

    /// Opens the page with this path.
    pub async fn go(&self, path: &str) {
        self.client.goto(&format!("{}{path}", self.site)).await.unwrap();
    }

    /// Returns the path and the query of the current page.
    pub async fn location(&self) -> String {
        let url = self.client.current_url().await.unwrap();
        format!("{}{}", url.path(), url.query().map(|query| format!("?{query}")).unwrap_or_default())
    }

    /// Runs a script and returns its result.
    pub async fn run(&self, script: &str) -> Value {
        self.client.execute(script, Vec::new()).await.unwrap()
    }

    /// Waits until an element with this selector contains this text.
    pub async fn wait_until_shown(&self, selector: &str, text: &str) {
        let script = "const found = [...document.querySelectorAll(arguments[0])]; \
                      return found.some((one) => one.textContent.includes(arguments[1]))";
        let arguments = vec![json!(selector), json!(text)];
        let deadline = Instant::now() + WAIT_TIMEOUT;
        while self.client.execute(script, arguments.clone()).await.unwrap() != json!(true) {
            if Instant::now() > deadline {
                let body = self.run("return document.body.innerText").await;
                panic!("{selector} does not show {text:?} on {}:\n{body:#}", self.location().await);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until no element with this selector is displayed.
    pub async fn wait_until_absent(&self, selector: &str) {
        let found = Locator::Css(selector);
        eventually(&format!("{selector} is not displayed"), async || {
            let found = self.client.find_all(found).await.unwrap();
            let mut visible = false;
            for element in found {
                visible |= element.is_displayed().await.unwrap_or(false);
            }
            (!visible).then_some(())
        })
        .await;
    }

    /// Clicks on the element as soon as it is clickable.
    pub async fn click(&self, selector: &str) {
        eventually(&format!("{selector} can be clicked"), async || {
            // The page may replace the element between the search and the click.
            self.client.find(Locator::Css(selector)).await.ok()?.click().await.ok()
        })
        .await;
    }

    /// Presses a key in the focused element. `key` is `Enter` or a single character.
    pub async fn press(&self, key: &str) {
        let (text, code) = if key == "Enter" { ("\r", 13) } else { (key, 0) };
        let down = json!({ "type": "keyDown", "key": key, "text": text, "windowsVirtualKeyCode": code });
        self.send_devtools_command("Input.dispatchKeyEvent", down).await;
        self.send_devtools_command("Input.dispatchKeyEvent", json!({ "type": "keyUp", "key": key })).await;
    }

    /// Sets the size of the page. A width below 600 simulates a phone.
    pub async fn resize(&self, width: u32, height: u32) {
        let metrics =
            json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.send_devtools_command("Emulation.setDeviceMetricsOverride", metrics).await;
    }

    /// Sets the preferred colour scheme, light or dark.
    pub async fn set_color_scheme(&self, scheme: &str) {
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.send_devtools_command("Emulation.setEmulatedMedia", features).await;
    }

    /// Saves a screenshot of the page in the checkout's directory `target/console`, and returns the path of the file.
    pub async fn screenshot(&self, name: &str) -> PathBuf {
        let directory = project::root().join("target/console");
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join(format!("{name}.png"));
        std::fs::write(&path, self.client.screenshot().await.unwrap()).unwrap();
        path
    }

    /// Asserts that the browser's log contains no warnings or errors, and closes the browser.
    pub async fn assert_no_errors(self) {
        let logged = self.command("se/log", json!({ "type": "browser" })).await;
        let is_problem = |entry: &&Value| matches!(entry["level"].as_str(), Some("SEVERE" | "WARNING"));
        let errors: Vec<_> = logged.as_array().unwrap().iter().filter(is_problem).collect();
        assert!(errors.is_empty(), "{errors:#?}");
        self.client.close().await.unwrap();
    }

    /// Sends a command of the developer tools.
    async fn send_devtools_command(&self, command: &str, parameters: Value) {
        self.command("goog/cdp/execute", json!({ "cmd": command, "params": parameters })).await;
    }

    async fn command(&self, path: &'static str, body: Value) -> Value {
        self.client.issue_cmd(Extension { path, body }).await.unwrap()
    }
}

/// Starts the driver, and returns its process and its port. The driver selects a port that is free for IPv6, and exits
/// if this port is in use for IPv4. This function then starts the driver again, and panics after five failed starts.
async fn start(driver: &Path) -> (Child, u16) {
    let mut output = Vec::new();
    for _ in 0..5 {
        let driver = Launch::new(driver).args(["--port=0"]).start().unwrap();
        let started =
            driver.follow().find(WAIT_TIMEOUT, |line| line.contains("started successfully on port")).await;
        if let Some(line) = started {
            let port = line.text.trim_end_matches('.').rsplit(' ').next().unwrap().parse().unwrap();
            return (driver, port);
        }
        output.extend(driver.tail(20));
    }
    panic!("{output:#?}")
}

/// A command of the driver that the `WebDriver` standard does not have.
#[derive(Debug)]
struct Extension {
    path: &'static str,
    body: Value,
}

impl WebDriverCompatibleCommand for Extension {
    fn endpoint(&self, base: &Url, session: Option<&str>) -> Result<Url, url::ParseError> {
        base.join(&format!("session/{}/{}", session.unwrap_or_default(), self.path))
    }

    fn method_and_body(&self, _url: &Url) -> (Method, Option<String>) {
        (Method::POST, Some(self.body.to_string()))
    }
}
