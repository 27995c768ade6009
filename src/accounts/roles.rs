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
    /// Uses the service, and reads and changes only their own records.
    Customer,
    /// Reads the records of every customer, and acts on behalf of customers.
    Support,
    /// Reads the audit log, and no records of customers.
    Auditor,
    /// Administers the service, and reads the records of every customer and the audit log. The extractors [`Customer`]
    /// and [`CustomerOrSupport`] reject an admin.
    Admin,
}

impl Role {
    /// Returns the role's name in SQL and JSON.
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
    /// A customer, or support on behalf of a customer. The handler limits customers to their own records with
    /// `owner_filter`.
    CustomerOrSupport(Role::Customer.as_str(), Role::Support.as_str());
    /// A customer, who reads only their own records, or staff (support and admins), who read the records of every
    /// customer. The extractor checks only the role: the handler limits customers to their own records with
    /// `owner_filter`.
    OwnerOrStaff(Role::Customer.as_str(), Role::Support.as_str(), Role::Admin.as_str());
    /// Support or an administrator.
    Staff(Role::Support.as_str(), Role::Admin.as_str());
    /// A reader of the audit log.
    AuditReader(Role::Auditor.as_str(), Role::Admin.as_str());
    /// An administrator.
    Admin(Role::Admin.as_str());
}

impl OwnerOrStaff {
    /// Returns the id of the caller if the caller is a customer: the query must then return only records of this
    /// customer. Returns `None` for staff, who read all records.
    pub fn owner_filter(&self) -> Option<Uuid> {
        (self.0.role == Role::Customer.as_str()).then_some(self.0.user_id)
    }

    /// Records an audit event if the caller is staff. `ids` are the ids of the customers' records that the caller
    /// reads, and `resource` is the table of these records. A customer's read of their own records is not audited.
    /// Handlers call this function before they respond, so that staff sees no record without an audit event.
    ///
    /// # Errors
    /// If the event cannot be recorded. The handler must then return the error instead of the records.
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
    /// Returns the id of the caller if the caller is a customer: the statement must then change only records of this
    /// customer. Returns `None` for support, who changes records of any customer.
    pub fn owner_filter(&self) -> Option<Uuid> {
        (self.0.role == Role::Customer.as_str()).then_some(self.0.user_id)
    }
}

#[cfg(test)]
mod tests {
    use platform::identity::Caller;

    use super::*;

    fn caller(role: Role) -> Caller {
        Caller { user_id: Uuid::from_u128(1), role: role.as_str(), session_id: Uuid::from_u128(2) }
    }

    #[test]
    fn only_a_customer_is_limited_to_their_own_records() {
        let customer = Some(Uuid::from_u128(1));
        assert_eq!(OwnerOrStaff(caller(Role::Customer)).owner_filter(), customer);
        assert_eq!(CustomerOrSupport(caller(Role::Customer)).owner_filter(), customer);
        assert_eq!(OwnerOrStaff(caller(Role::Support)).owner_filter(), None);
        assert_eq!(OwnerOrStaff(caller(Role::Admin)).owner_filter(), None);
        assert_eq!(CustomerOrSupport(caller(Role::Support)).owner_filter(), None);
    }

    #[test]
    fn a_role_is_read_as_it_is_written() {
        for role in [Role::Customer, Role::Support, Role::Auditor, Role::Admin] {
            assert_eq!(Role::parse(role.as_str()), Some(role));
        }
        assert_eq!(Role::parse("root"), None);
    }
}
