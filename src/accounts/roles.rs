//! The roles of users, and the extractors that require one of them.
use platform::{
    audit::{Event, EventResult, EventType, record},
    database::Database,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

/// The role of a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Uses the service, and sees only their own records.
    Customer,
    /// Sees the records of every customer, and acts on behalf of customers.
    Support,
    /// Reads the audit log.
    Auditor,
    /// Administers the service. An admin is allowed to do everything except what customers do for themselves.
    Admin,
}

impl Role {
    /// Returns the name as written in SQL and JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Customer => "customer",
            Self::Support => "support",
            Self::Auditor => "auditor",
            Self::Admin => "admin",
        }
    }

    /// Parses the output of [`Self::as_str`].
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Customer, Self::Support, Self::Auditor, Self::Admin]
            .into_iter()
            .find(|role| role.as_str() == text)
    }
}

platform::callers! {
    /// A customer.
    Customer(Role::Customer.as_str());
    /// A customer, or support on behalf of a customer.
    CustomerOrSupport(Role::Customer.as_str(), Role::Support.as_str());
    /// A customer who reads their own records, or staff who read any.
    OwnerOrStaff(Role::Customer.as_str(), Role::Support.as_str(), Role::Admin.as_str());
    /// Support or an administrator.
    Staff(Role::Support.as_str(), Role::Admin.as_str());
    /// A reader of the audit log.
    AuditReader(Role::Auditor.as_str(), Role::Admin.as_str());
    /// An administrator.
    Admin(Role::Admin.as_str());
}

impl OwnerOrStaff {
    /// Returns the customer if the caller is one, because customers read only their own records. Returns `None` for
    /// staff.
    pub fn owner_filter(&self) -> Option<Uuid> {
        (self.0.role == Role::Customer.as_str()).then_some(self.0.user_id)
    }

    /// Records an audit event if staff reads these records of customers, in the table `resource`. Customers read only
    /// their own records, which is not audited. Handlers call this function before they respond, so that no record is
    /// shown without its event.
    ///
    /// # Errors
    /// If the event cannot be recorded.
    pub async fn record_access(
        &self,
        database: &Database,
        resource: &'static str,
        ids: impl IntoIterator<Item = Uuid>,
    ) -> Result<(), sqlx::Error> {
        if self.owner_filter().is_some() {
            return Ok(());
        }
        let event = Event::new(EventType::DataAccess, resource, "read", EventResult::Success).records(ids);
        record(database, event).await
    }
}

impl CustomerOrSupport {
    /// Returns the customer if the caller is one, because customers change only their own records. Returns `None` for
    /// support.
    pub fn owner_filter(&self) -> Option<Uuid> {
        (self.0.role == Role::Customer.as_str()).then_some(self.0.user_id)
    }
}
