{{- define "mechanicd.name" -}}
{{- $name := ternary .Release.Name (printf "%s-mechanicd" .Release.Name) (contains "mechanicd" .Release.Name) -}}
{{- $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "mechanicd.selector" -}}
app.kubernetes.io/name: mechanicd
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "mechanicd.labels" -}}
{{ include "mechanicd.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- /* The Secret with the certificate. */ -}}
{{- define "mechanicd.tlsSecret" -}}
{{- if .Values.tls.certManager.enabled -}}
{{ include "mechanicd.name" . }}-tls
{{- else -}}
{{ required "a certificate is needed: set tls.secret to a Secret of type kubernetes.io/tls, or tls.certManager.enabled=true" .Values.tls.secret }}
{{- end -}}
{{- end -}}

{{- /* The names by which the cluster reaches the servers: a YAML list. */ -}}
{{- define "mechanicd.hosts" -}}
{{- range $service := list (include "mechanicd.name" .) (printf "%s-trainers" (include "mechanicd.name" .)) }}
- {{ $service }}
- {{ $service }}.{{ $.Release.Namespace }}
- {{ $service }}.{{ $.Release.Namespace }}.svc
- {{ $service }}.{{ $.Release.Namespace }}.svc.cluster.local
{{- end }}
{{- end -}}
